"""TFDS datasets in ArrayRecord files, randomly accessed without TensorFlow."""

import functools
import io
import os
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
import pyarrow as pa
import tensorflow_datasets as tfds

from sdxl_jax.data.sources import (
  captions,
  index,
  indexed,
  measuring,
  tfds_features,
)

CHUNK = 10_000  # records in a part of the index


class TFDS(indexed.IndexedSource):
  """A split of a dataset.

  Args:
    dataset: registered name, optionally with version, or the folder of a built
      dataset, which needs no code.
    split: as in TFDS, such as 'train' or 'train[:60%]'.
    data_dir: where TFDS keeps its datasets; '': TFDS's default.
    image: feature of the image.
    caption: feature of the caption, of text, labels or sequences of them;
      'captions/text' is a feature within another; '': captions are ''.
    score: feature of aesthetic_score; '': none.
    several: whether all captions of a sequence are used.
    mask: feature of the mask, an image; '': none.
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
    several: bool = False,
    mask: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    # Open the dataset, its images left encoded.
    builder = make_builder(dataset, data_dir)
    columns = indexed.index_columns(columns, score)
    names = [n for n in (image, caption, mask, *columns.values()) if n]
    check_features(builder, names)
    features = builder.info.features
    labels = tfds_features.check(features, image, caption)
    if mask:
      tfds_features.check_image(features, 'mask', mask)
    self.reads = tfds_features.Fields(image, caption, labels, several, mask)
    self.several = several
    self.texts = tfds_features.choose(features, tfds_features.is_text)
    self.title = f'{builder.info.full_name} {split}'
    decoders = {}
    for encoded in (image, mask) if mask else (image,):
      *outer, last = tfds_features.path(features, encoded)
      place = decoders
      for part in outer:
        place = place.setdefault(part, {})
      place[last] = tfds.decode.SkipDecoding()
    try:
      self.source = builder.as_data_source(split=split, decoders=decoders)
    except ValueError as error:
      raise ValueError(
        f'config.data.tfds.split is {split!r}: {error}'
      ) from error
    # Index it, in its own folder if that is local.
    build_options = dict(image=image, caption=caption, columns=columns)
    build_options |= indexed.if_set(several=several, mask=mask)
    folder = os.fspath(builder.data_dir)
    super().__init__(
      index.load(
        folder if os.path.isdir(folder) else None,
        {'source': 'tfds', 'dataset': self.title, **build_options},
        list(chunks(builder, split, len(self.source))),
        functools.partial(
          measure, source=self.source, fields=self.reads, columns=columns
        ),
        workers,
      )
    )

  @property
  def remedy(self) -> str:
    """What to do where no record has a caption."""
    return (
      f'Name another feature in config.data.tfds.caption, one of {self.texts}; '
      "'' trains without captions (stage 0)."
    )

  def name(self, i: int) -> str:
    return f'{self.title}: record {self.value("record", i)}'

  def read(self, i: int) -> indexed.Example:
    example = self.source[self.value('record', i)]
    image = self.reads.image_of(example)
    caption = captions.of_example(self.reads.caption_of(example))
    masks = {'mask': self.reads.mask_of(example)} if self.reads.mask else {}
    return {'image': image, **caption, **masks}


def make_builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
  """Makes the builder of a name, or of the folder of a built dataset."""
  info = os.path.join(dataset, 'dataset_info.json')
  if os.path.isfile(info):
    try:
      return tfds.builder_from_directory(dataset)
    # Of parsers of JSON, of protocol buffers, of features.
    except Exception as error:
      raise ValueError(
        f'{info}, or features.json beside it, cannot be read ({error}): copy '
        'or build the dataset again'
      ) from error
  try:
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
  features = builder.info.features
  missing = sorted(n for n in set(names) if not tfds_features.find(features, n))
  if missing:
    raise ValueError(
      f'{builder.info.full_name} has no feature {missing}, but '
      f'{tfds_features.names(features)}: name them in config.data.tfds'
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
  fields: tfds_features.Fields,
  columns: dict[str, str],
) -> pa.Table:
  """Measures a part of the index: a range of records."""
  rows = [measure_record(i, source, fields, columns) for i in range(*bounds)]
  return indexed.make_table(
    [measured for measured, _ in rows],
    {name: [values.get(name) for _, values in rows] for name in columns},
    record=pa.array(range(*bounds), pa.int64()),
  )


def measure_record(
  i: int,
  source: Sequence[dict],
  fields: tfds_features.Fields,
  columns: dict[str, str],
) -> tuple[indexed.Measured, dict[str, Any]]:
  """Measures a record; also returns its columns."""
  name = f'record {i}'
  try:
    example = source[i]
  # What the readers of features raise on broken records depends on them.
  except Exception as error:
    return measuring.unreadable(name, error), {}
  values = {
    n: fields.look_up(example, feature) for n, feature in columns.items()
  }
  score, wrong = measuring.parse_score(values.get('aesthetic_score'))
  values['aesthetic_score'] = score
  # Images stay encoded: only their headers are read.
  image = io.BytesIO(fields.image_of(example))
  caption = fields.caption_of(example)
  mask = fields.mask_of(example) if fields.mask else None
  measured = measuring.measure(
    name, image, caption, score, io.BytesIO(mask) if mask else None
  )
  return measuring.check_score(measured, wrong), values
