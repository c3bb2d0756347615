"""What a source is, and the base class of those that have an index."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from sdxl_jax.data import buckets, images
from sdxl_jax.data.sources import column_values

MAX_LISTED = 5  # names listed in an error
STAMPED = 4096  # bytes at each end of an image that its stamp depends on
# Categories of Unicode: controls, surrogates, ends of lines and paragraphs.
UNPRINTABLE = ('Cc', 'Cs', 'Zl', 'Zp')
# Values of an index's column `problem`: why an item is no usable record. An
# index has a row for every item seen, so that the counts add up.
USABLE = 0
UNREADABLE = 1  # no image in a format that Pillow reads
NO_CAPTION = 2  # none, or an empty one
NO_IMAGE = 3  # a caption or a row of a table without its image
UNKNOWN_SUFFIX = 4  # neither an image nor a caption
DUPLICATE = 5  # the name of an earlier record
BAD_CAPTION = 6  # not text: a number, a struct
BAD_ENCODING = 7  # text in an encoding that is not the one expected
LINK = 8  # broken, or to a folder that contains it
TOO_LARGE = 9  # more pixels than Pillow decodes
BAD_SCORE = 10  # not a finite number
NOT_LISTED = 11  # an image that the table of its folder lacks
BAD_JSON = 12  # metadata that are not a JSON object
NOT_REPEATED = 13  # in no folder whose name has a number of repeats

# Columns that every index has or may have. One of the data with such a name,
# as img2dataset's `width`, has a prefix.
OWN = ('height', 'width', 'problem', 'key', 'stamp', 'reason', 'captions')
OWN_COLUMN = 'column '

Example = dict[str, Any]


class Measured(NamedTuple):
  """What an index holds of an item, which is a record or cannot be one."""

  name: str  # relative to the dataset, so that it stays when that moves
  size: images.Size | None = None  # upright; None: no readable image
  problem: int = USABLE
  detail: str = ''  # of the problem, in words; '': the code says it all
  stamp: int = 0  # see `stamp`
  captions: int = 1  # how many it has


@runtime_checkable
class Source(Protocol):
  """A sequence of captioned images whose sizes are known in advance.

  source[i] is a dict of
    image            encoded bytes, or uint8 [h, w, 3]
    mask             encoded bytes of an image, or None, where masks are named
    caption          string
    captions         strings, optional: all of several, of which one is chosen
    part             name of its source within a mixture, optional
    original_size    (height, width) in px, upright
    name             path or id, for error messages
    aesthetic_score  float, optional
    flippable        bool, optional; False where mirroring makes the caption
                     wrong
  and raises images.UnreadableImage where the record cannot be read. A
  precomputed record has `variants` and encoded text in place of the image.
  What `kinds.make_source` returns also counts and lists what it leaves out, by
  `account()` and `left_out()`.
  """

  sizes: np.ndarray  # int32 [n, 2], (height, width) of all, nothing decoded
  # uint64 [n] of each record: hashes of its name, and of its content, which
  # stay when the dataset moves. None of a cache that an older version wrote.
  keys: np.ndarray | None
  stamps: np.ndarray | None

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
    fields: the names that the data has for its columns, for errors.
    beside: {what: count} of files that belong to the records or to nothing.
  """

  def __init__(
    self,
    table: pa.Table,
    fields: Sequence[str] = (),
    beside: dict[str, int] | None = None,
  ):
    self.table, self.fields, self.beside = table, fields, beside or {}
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

  @property
  def stamps(self) -> np.ndarray | None:
    """uint64 [n], which changes with a record's content; None of old caches."""
    return self.column('stamp') if 'stamp' in self.table.column_names else None

  @property
  def keys(self) -> np.ndarray | None:
    """uint64 [n], hashes of the records' names; None of old caches."""
    return self.column('key') if 'key' in self.table.column_names else None

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


class GeneratedSource:
  """Base class of sources whose records follow from settings and a number.

  A subclass sets `sizes`.

  Args:
    names: pattern of the records' names, with {} for the number.
    settings: JSON value, of all that the records depend on.
  """

  def __init__(self, names: str, settings: Any):
    self.names, self.settings = names, settings

  def __len__(self) -> int:
    return len(self.sizes)

  @property
  def stamps(self) -> np.ndarray:
    """uint64 [n], which changes with a record's content."""
    return self.keys ^ np.uint64(key(json.dumps(self.settings, sort_keys=True)))

  @property
  def keys(self) -> np.ndarray:
    """uint64 [n], hashes of the records' numbers."""
    return buckets.mix(np.arange(1, len(self) + 1, dtype=np.uint64))

  def name(self, i: int) -> str:
    """Names a record in reports."""
    return self.names.format(i)


def make_table(
  records: Sequence[Measured],
  columns: dict[str, Sequence],
  **locations: pa.Array,
) -> pa.Table:
  """Makes a part of an index.

  Args:
    records: what was measured; a usable one without a size is unreadable.
    columns: {name: values or None of each record}, of numbers or strings.
    **locations: columns by which the source finds its records.
  """
  sizes = [r.size or (0, 0) for r in records]
  sizes = np.array(sizes, np.int32).reshape(-1, 2)
  problem = np.array([r.problem for r in records], np.uint8)
  problem[(sizes[:, 0] == 0) & (problem == USABLE)] = UNREADABLE
  measured = {
    'height': sizes[:, 0],
    'width': sizes[:, 1],
    'problem': problem,
    'key': np.array([key(r.name) for r in records], np.uint64),
    'stamp': np.array([r.stamp for r in records], np.uint64),
  }
  # Columns that few datasets need are left to those.
  if any(r.detail for r in records):
    details = [r.detail and printable(r.detail) or None for r in records]
    measured['reason'] = pa.array(details, pa.string())
  if any(r.captions != 1 for r in records):
    counts = [min(r.captions, 255) for r in records]
    measured['captions'] = np.array(counts, np.uint8)
  arrays = {
    OWN_COLUMN + n if n in {*OWN, *locations} else n: column_values.make_column(
      values
    )
    for n, values in columns.items()
  }
  return pa.table(measured | arrays | locations)


def key(name: str) -> int:
  """Hashes the name of a record to 64 bits."""
  return hash64(name.encode('utf-8', 'surrogatepass'))


def stamp(
  file: Any, caption: str, score: float | None = None, mask: Any = None
) -> int:
  """Hashes what decides the content of a record to 64 bits.

  Of the image these are its length and both ends, so that little is read: an
  encoder that changes an image changes nearly always its length and its end. A
  copy of a dataset has the same stamps; times play no part.

  Args:
    file: open file of the encoded image, which is left at its start.
    caption: text of the caption.
    score: aesthetic score, if there is one.
    mask: open file of the mask, if there is one, whose bytes all count.
  """
  length = file.seek(0, 2)
  file.seek(0)
  head = file.read(STAMPED)
  file.seek(max(0, length - STAMPED))
  tail = file.read(STAMPED)
  file.seek(0)
  text = f'{length} {score} {caption}'
  if mask is not None:
    mask.seek(0)
    text += f' {hash64(mask.read())}'
  return hash64(head + tail + text.encode('utf-8', 'surrogatepass'))


def hash64(data: bytes) -> int:
  """Hashes bytes to 64 bits."""
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little')


def printable(text: str) -> str:
  """Escapes what would break a line or cannot be encoded, as in file names."""
  if text.isprintable():
    return text
  return ''.join(
    c.encode('unicode_escape').decode()
    if unicodedata.category(c) in UNPRINTABLE
    else c
    for c in text
  )


def if_set(**options: Any) -> dict[str, Any]:
  """Returns the options that are not off.

  An index is known by all options that it was built with: those that came
  later are left out where they are off, so that earlier indices stay.
  """
  return {name: value for name, value in options.items() if value}


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


def dataset_error(problem: str, names: Sequence, remedy: str) -> ValueError:
  """Makes an error that fits one screen: problem, count, some names, remedy."""
  lines = [str(name) for name in names[:MAX_LISTED]]
  if len(names) > MAX_LISTED:
    lines.append('...')
  listed = ''.join(f'\n  {line}' for line in lines)
  return ValueError(f'{problem} ({len(names)}):{listed}\n{remedy}')
