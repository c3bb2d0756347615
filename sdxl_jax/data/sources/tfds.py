"""TFDS datasets in ArrayRecord files, read at random and without TensorFlow."""

import functools
import io
import os

import fsspec
import pyarrow as pa
import tensorflow_datasets as tfds

from sdxl_jax.data.sources import index, indexed

CHUNK = 10_000  # records indexed at a time


class TFDS(indexed.IndexedSource):
  """A split of a dataset.

  Args:
    dataset: registered name, with version if wanted, or the folder of a built
      dataset, which needs no code.
    split: as in TFDS, such as 'train' or 'train[:60%]'.
    data_dir: where TFDS keeps its datasets; '': its default.
    image, caption: features; caption '': none.
    score: feature for aesthetic_score; '': none.
    columns: others, by which filters choose.
    workers: processes that read headers.

  Raises:
    FileNotFoundError: where TFDS has no such dataset.
    ValueError: for features that it lacks, or files of another format.
  """

  def __init__(
    self,
    dataset,
    split='train',
    data_dir='',
    image='image',
    caption='caption',
    score='',
    columns=(),
    workers=8,
  ):
    builder = make_builder(dataset, data_dir)
    columns = indexed.index_columns(columns, score)
    names = filter(None, [image, caption, *columns.values()])
    check_features(builder, names)
    self.image, self.caption = image, caption
    self.title = f'{builder.info.full_name} {split}'
    self.source = builder.as_data_source(
      split=split, decoders={image: tfds.decode.SkipDecoding()}
    )
    facts = dict(image=image, caption=caption, columns=columns)
    folder = os.fspath(builder.data_dir)
    super().__init__(
      index.load(
        folder if os.path.isdir(folder) else None,
        {'source': 'tfds', 'dataset': self.title, **facts},
        list(chunks(builder, split, len(self.source))),
        functools.partial(measure, source=self.source, **facts),
        workers,
      )
    )

  def name(self, i):
    return f'{self.title}: record {self.value("record", i)}'

  def read(self, i):
    example = self.source[self.value('record', i)]
    caption = text_of(example[self.caption]).strip() if self.caption else ''
    return {'image': example[self.image], 'caption': caption}


def make_builder(dataset, data_dir):
  """The builder of a name, or of the folder that holds a built dataset."""
  try:
    if os.path.isfile(os.path.join(dataset, 'dataset_info.json')):
      return tfds.builder_from_directory(dataset)
    return tfds.builder(dataset, data_dir=data_dir or None)
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise FileNotFoundError(
      f'TFDS knows no dataset {dataset!r}: give the name of one, or the folder '
      'of one that is built, which has a dataset_info.json'
    ) from error


def check_features(builder, names):
  lacking = sorted(set(names) - set(builder.info.features))
  if lacking:
    raise ValueError(
      f'{builder.info.full_name} has no feature {lacking}, but '
      f'{sorted(builder.info.features)}: name them in config.data.tfds'
    )
  if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f'{builder.info.full_name} is stored as '
      f'{builder.info.file_format.value}, which has no access at random: build '
      "it with file_format='array_record'"
    )


def chunks(builder, split, length):
  """Parts for index.load: ranges of records, as old as the split's files."""
  files = builder.info.splits[split].filepaths
  stamps = []
  for file in files:
    fs, path = fsspec.core.url_to_fs(os.fspath(file))
    stamps.append(index.file_version(fs, path))
  for start in range(0, length, CHUNK):
    yield [start, min(start + CHUNK, length)], stamps


def measure(bounds, source, image, caption, columns):
  """A part of the index: a range of records."""
  pictures, rows = [], []
  for i in range(*bounds):
    example = source[i]
    pictures.append(indexed.size_of(io.BytesIO(example[image])))
    rows.append({name: text_of(example[name]) for name in columns.values()})
  return indexed.make_table(
    pictures,
    [True] * len(rows),
    {n: [row[name] for row in rows] for n, name in columns.items()},
    record=pa.array(range(*bounds), pa.int64()),
  )


def text_of(value):
  """Text comes as bytes, numbers as they are."""
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
