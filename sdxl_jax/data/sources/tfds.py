"""TFDS datasets in ArrayRecord files, randomly accessed without TensorFlow."""

import functools
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import tensorflow_datasets as tfds

from sdxl_jax.data.sources import index, indexed

CHUNK = 10_000  # records in a part of the index


class TFDS(indexed.IndexedSource):
  """A split of a dataset.

  Args:
    dataset: registered name, optionally with version, or the folder of a built
      dataset, which needs no code.
    split: as in TFDS, such as 'train' or 'train[:60%]'.
    data_dir: where TFDS keeps its datasets; '': TFDS's default.
    image: feature of the image.
    caption: feature of the caption; '': captions are ''.
    score: feature of aesthetic_score; '': none.
    columns: other features, by which filters choose.
    workers: processes that read headers to index them.

  Raises:
    FileNotFoundError: if TFDS has no such dataset.
    ValueError: for missing features, or files of another format.
  """

  def __init__(
    self,
    dataset: str,
    split: str = 'train',
    data_dir: str = '',
    image: str = 'image',
    caption: str = 'caption',
    score: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    # Open the dataset, its images left encoded.
    builder = make_builder(dataset, data_dir)
    columns = indexed.index_columns(columns, score)
    names = [name for name in (image, caption, *columns.values()) if name]
    check_features(builder, names)
    self.image, self.caption = image, caption
    self.title = f'{builder.info.full_name} {split}'
    self.source = builder.as_data_source(
      split=split, decoders={image: tfds.decode.SkipDecoding()}
    )
    # Index it, in its own folder if that is local.
    build_options = dict(image=image, caption=caption, columns=columns)
    folder = os.fspath(builder.data_dir)
    super().__init__(
      index.load(
        folder if os.path.isdir(folder) else None,
        {'source': 'tfds', 'dataset': self.title, **build_options},
        list(chunks(builder, split, len(self.source))),
        functools.partial(measure, source=self.source, **build_options),
        workers,
      )
    )

  def name(self, i: int) -> str:
    return f'{self.title}: record {self.value("record", i)}'

  def read(self, i: int) -> indexed.Example:
    example = self.source[self.value('record', i)]
    caption = text_of(example[self.caption]).strip() if self.caption else ''
    return {'image': example[self.image], 'caption': caption}


def make_builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
  """Makes the builder of a name, or of the folder of a built dataset."""
  try:
    if os.path.isfile(os.path.join(dataset, 'dataset_info.json')):
      return tfds.builder_from_directory(dataset)
    return tfds.builder(dataset, data_dir=data_dir or None)
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise FileNotFoundError(
      f'TFDS has no dataset {dataset!r}: pass the name of one, or the folder '
      'of a built one, which has a dataset_info.json'
    ) from error


def check_features(
  builder: tfds.core.DatasetBuilder, names: Sequence[str]
) -> None:
  """Raises ValueError for missing features or files without random access."""
  missing = sorted(set(names) - set(builder.info.features))
  if missing:
    raise ValueError(
      f'{builder.info.full_name} has no feature {missing}, but '
      f'{sorted(builder.info.features)}: name them in config.data.tfds'
    )
  if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f'{builder.info.full_name} is stored as '
      f'{builder.info.file_format.value}, which has no random access: build it '
      "with file_format='array_record'"
    )


def chunks(
  builder: tfds.core.DatasetBuilder, split: str, length: int
) -> Iterator[tuple[list[int], list]]:
  """Yields parts for index.load: ranges of records, and the files' versions."""
  versions = []
  for file in builder.info.splits[split].filepaths:
    fs, path = fsspec.core.url_to_fs(os.fspath(file))
    versions.append(index.file_version(fs, path))
  for start in range(0, length, CHUNK):
    yield [start, min(start + CHUNK, length)], versions


def measure(
  bounds: Sequence[int],
  source: Sequence[dict],
  image: str,
  caption: str,
  columns: dict[str, str],
) -> pa.Table:
  """Measures a part of the index: a range of records."""
  # Images stay encoded: only their headers are read.
  sizes, rows = [], []
  for i in range(*bounds):
    example = source[i]
    sizes.append(indexed.size_of(io.BytesIO(example[image])))
    rows.append({name: text_of(example[name]) for name in columns.values()})
  return indexed.make_table(
    [indexed.Measured(str(i), size) for i, size in zip(range(*bounds), sizes)],
    {n: [row[name] for row in rows] for n, name in columns.items()},
    record=pa.array(range(*bounds), pa.int64()),
  )


def text_of(value: Any) -> Any:
  """Decodes text, which TFDS returns as bytes, and keeps numbers."""
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
