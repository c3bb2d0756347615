"""What a source is, and the base class of those that have an index."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from sdxl_jax.data import images

MAX_LISTED = 5  # names listed in an error
# Values of an index's column `problem`.
USABLE, UNREADABLE, NO_CAPTION = range(3)

Example = dict[str, Any]


@runtime_checkable
class Source(Protocol):
  """A sequence of captioned images whose sizes are known in advance.

  source[i] is a dict of
    image            encoded bytes, or uint8 [h, w, 3]
    caption          string
    original_size    (height, width) in px, upright
    name             path or id, for error messages
    aesthetic_score  float, optional
    flippable        bool, optional; False where mirroring makes the caption
                     wrong
  and raises images.UnreadableImage where the record cannot be read. A
  precomputed record has `variants` and encoded text in place of the image.
  What `kinds.make_source` returns also lists the records that it leaves out.
  """

  sizes: np.ndarray  # int32 [n, 2], (height, width) of all, nothing decoded

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...

  def name(self, i: int) -> str: ...


class IndexedSource:
  """Base class of sources whose records are rows of an index.

  A subclass builds its index by `index.load`, where a function of its own
  measures the records by `make_table`, passes the table to __init__, and
  implements `name` and `read`. Sizes, scores and filters come from the index.

  Args:
    table: the index, with the columns of `make_table`.
  """

  def __init__(self, table: pa.Table):
    self.table = table
    self.sizes = np.stack([self.column('height'), self.column('width')], 1)

  def __len__(self) -> int:
    return len(self.sizes)

  def __getitem__(self, i: int) -> Example:
    example = self.read(i)
    example['original_size'] = tuple(int(n) for n in self.sizes[i])
    example['name'] = self.name(i)
    if 'aesthetic_score' in self.table.column_names:
      score = self.value('aesthetic_score', i)
      if score is not None:
        example['aesthetic_score'] = score
    return example

  def column(self, name: str) -> np.ndarray:
    """Returns a column of the index, [n]."""
    return self.table[name].to_numpy()

  def value(self, name: str, i: int) -> Any:
    """Returns a column's value of one record; None where it has none."""
    return self.table[name][int(i)].as_py()

  def name(self, i: int) -> str:
    """Names a record in reports, so that a user finds it."""
    raise NotImplementedError

  def read(self, i: int) -> Example:
    """Reads {'image': encoded bytes, 'caption': string} of a record.

    Raises:
      images.UnreadableImage: if the file is missing or cannot be read.
    """
    raise NotImplementedError


def make_table(
  sizes: Sequence[images.Size | None],
  captioned: Sequence[bool],
  columns: dict[str, Sequence],
  **locations: pa.Array,
) -> pa.Table:
  """Makes a part of an index.

  Args:
    sizes: (height, width) of each record, None where its header is broken.
    captioned: of each record, whether it has a caption.
    columns: {name: values or None of each record}, of numbers or strings.
    **locations: columns by which the source finds its records.
  """
  problem = np.where(captioned, USABLE, NO_CAPTION).astype(np.uint8)
  problem[[size is None for size in sizes]] = UNREADABLE
  sizes = np.array([size or (0, 0) for size in sizes], np.int32).reshape(-1, 2)
  measured = {'height': sizes[:, 0], 'width': sizes[:, 1], 'problem': problem}
  arrays = {name: make_column(values) for name, values in columns.items()}
  return pa.table(measured | arrays | locations)


def index_columns(names: Sequence[str], score: str) -> dict[str, str]:
  """Maps the columns of an index to the names that the data has for them.

  Args:
    names: columns by which filters choose, the same in index and data.
    score: the data's name of aesthetic_score; '': it has none.
  """
  columns = dict(zip(names, names))
  if score:
    columns['aesthetic_score'] = score
  return columns


def make_column(values: Sequence) -> pa.Array:
  """Makes a column of floats, of strings where a value is not a number."""
  values = [None if value == '' else value for value in values]
  if all(value is None for value in values):
    return pa.nulls(len(values))
  try:
    numbers = [None if value is None else float(value) for value in values]
    return pa.array(numbers, pa.float64())
  except (TypeError, ValueError):
    texts = [None if value is None else str(value) for value in values]
    return pa.array(texts, pa.string())


def size_of(file: Any) -> images.Size | None:
  """Reads the upright (height, width) of an image, None if it is broken.

  Args:
    file: a path, or an open file.
  """
  try:
    return images.upright_size(file)
  except images.UnreadableImage:
    return None


def dataset_error(problem: str, names: Sequence, remedy: str) -> ValueError:
  """Makes an error that fits one screen: problem, count, some names, remedy."""
  lines = [str(name) for name in names[:MAX_LISTED]]
  if len(names) > MAX_LISTED:
    lines.append('...')
  listed = ''.join(f'\n  {line}' for line in lines)
  return ValueError(f'{problem} ({len(names)}):{listed}\n{remedy}')
