"""What all sources with an index share: the contract of `sources`."""

import numpy as np
import pyarrow as pa

from sdxl_jax.data import images

SHOWN = 5  # names listed in an error
FINE, UNREADABLE, NO_CAPTION = range(3)  # an index's column `problem`


class IndexedSource:
  """A source whose records stand in an index; subclasses read one of them."""

  def __init__(self, table):
    self.table = table
    self.sizes = np.stack([self.column('height'), self.column('width')], 1)

  def __len__(self):
    return len(self.sizes)

  def __getitem__(self, i):
    example = self.read(i)
    example['original_size'] = tuple(int(n) for n in self.sizes[i])
    example['name'] = self.name(i)
    if 'aesthetic_score' in self.table.column_names:
      score = self.value('aesthetic_score', i)
      if score is not None:
        example['aesthetic_score'] = score
    return example

  def column(self, name):
    """Of all records, as numpy."""
    return self.table[name].to_numpy()

  def value(self, name, i):
    """Of one record, as a Python object; None where it has none."""
    return self.table[name][int(i)].as_py()

  def name(self, i):
    """Of a record, for reports."""
    raise NotImplementedError

  def read(self, i):
    """{'image': encoded bytes, 'caption': string} of a record."""
    raise NotImplementedError


def make_table(sizes, captioned, columns, **locations):
  """A part of an index.

  Args:
    sizes: (height, width) of each record, None where its header is broken.
    captioned: of each record, whether it has a caption.
    columns: {name: values or None of each record}, of numbers or strings.
    **locations: name=pa.Array, where to find the records.
  """
  problem = np.where(captioned, FINE, NO_CAPTION).astype(np.uint8)
  problem[[size is None for size in sizes]] = UNREADABLE
  sizes = np.array([size or (0, 0) for size in sizes], np.int32).reshape(-1, 2)
  measured = {'height': sizes[:, 0], 'width': sizes[:, 1], 'problem': problem}
  arrays = {name: column(values) for name, values in columns.items()}
  return pa.table(measured | arrays | locations)


def index_columns(columns, score):
  """{name in the index: name in the data} of what an index keeps besides."""
  return dict(zip(columns, columns)) | (
    {'aesthetic_score': score} if score else {}
  )


def column(values):
  """Numbers where all values can be read as such, else strings."""
  values = [None if value == '' else value for value in values]
  if all(value is None for value in values):
    return pa.nulls(len(values))
  number = lambda value: value if value is None else float(value)
  text = lambda value: value if value is None else str(value)
  try:
    return pa.array(map(number, values), pa.float64())
  except (TypeError, ValueError):
    return pa.array(map(text, values), pa.string())


def size_of(picture):
  """Upright (height, width) of a path or open file, None where it is broken."""
  try:
    return images.upright_size(picture)
  except images.UnreadableImage:
    return None


def dataset_error(problem, names, remedy):
  """An error that fits one screen: what, how many, the first few, the cure."""
  names = [str(name) for name in names]
  lines = names[:SHOWN] + ['...'] * (len(names) > SHOWN)
  listed = ''.join(f'\n  {line}' for line in lines)
  return ValueError(f'{problem} ({len(names)}):{listed}\n{remedy}')
