"""Tables of images and captions: metadata.jsonl, metadata.csv, .parquet.

Hugging Face's imagefolder reads the same. Whatever would lose a part of a row
is refused, with the line.
"""

import csv
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sdxl_jax.data.sources import (
  indexed,
  parquet_columns,
  parquet_values,
  text_decoding,
)

NAMES = ('metadata.jsonl', 'metadata.csv', 'metadata.parquet')
FILE = 'file_name'  # column
DELIMITERS = ',;\t|'


class Table(NamedTuple):
  """The rows of a metadata file."""

  columns: list[str]
  rows: list[tuple[str, dict[str, Any]]]  # (place in the file, {column: value})
  joined: int = 0  # rows whose text had delimiters without quotes


def read(
  path: pathlib.Path,
  text: str,
  encoding: str,
  is_image: Callable[[str], bool],
) -> Table:
  """Reads a metadata file.

  Args:
    path: of the file.
    text: column of the caption; '': none is read.
    encoding: of the file, if it has no mark; '': UTF-8.
    is_image: whether there is an image of a name, to find missing quotes.

  Raises:
    ValueError: naming lines that cannot be read without loss, or columns that
      are missing.
  """
  if path.suffix == '.parquet':
    table = read_parquet(path, text)
  else:
    try:
      content = text_decoding.decode(path.read_bytes(), encoding)
    except text_decoding.BadEncoding as error:
      raise ValueError(f'{path}: {error}') from error
    if path.suffix == '.csv':
      table = read_csv(content, path, text, is_image)
    else:
      table = read_jsonl(content, path)
  check_columns(path, table.columns, text)
  return table._replace(columns=list(dict.fromkeys(table.columns)))


def check_columns(
  path: pathlib.Path, columns: Sequence[str], text: str
) -> None:
  """Raises ValueError, naming the columns, if that of files or text lacks."""
  if columns and FILE not in columns:
    raise ValueError(
      f'{path} has no column {FILE!r}, but {columns}; write the path of each '
      'image into it, relative to the table'
    )
  if twice := [n for n in (FILE, text) if columns.count(n) > 1]:
    raise ValueError(
      f'{path} has the column {twice[0]!r} twice: rename the one that is not '
      'meant'
    )
  if columns and text and not {text, text.partition('.')[0]} & {*columns}:
    raise ValueError(
      f'{path} has no column {text!r} of captions, but {columns}: name one of '
      'them in config.data.folder.caption'
    )


def read_parquet(path: pathlib.Path, text: str) -> Table:
  """Reads a parquet file."""
  try:
    schema = pq.read_schema(path)
    check_columns(path, schema.names, text)
    # Not the bytes of images, which are of the source `parquet`.
    names = [
      field.name
      for field in schema
      if field.name in (text, FILE) or not parquet_columns.is_bytes(field.type)
    ]
    values = parquet_values.to_rows(pq.read_table(path, columns=names))
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f'{path} is no readable parquet file: {error}') from error
  rows = [(f'row {number}', row) for number, row in enumerate(values, 1)]
  return Table(schema.names, rows)


def read_jsonl(content: str, path: pathlib.Path) -> Table:
  """Reads a JSON object per line.

  Raises:
    ValueError: naming a line that is none.
  """
  columns, rows = {}, []
  # Only line feeds end a line: str.splitlines also splits inside strings.
  for number, line in enumerate(content.split('\n'), 1):
    if line.strip():
      try:
        # A raw tab in a string is an error of form, and loses nothing.
        row = {**json.loads(line, strict=False)}
      except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(
          f'{path}, line {number} is not a JSON object ({error}): {line[:60]}\n'
          'Write one {"file_name": ..., "text": ...} per line.'
        ) from error
      columns |= dict.fromkeys(row)
      rows.append((f'line {number}', row))
  return Table(list(columns), rows)


class Lines:
  """Iterates over lines, and keeps those since the last `take`."""

  def __init__(self, content: str):
    # Lines end at \n, \r\n or \r, as in files.
    self.lines, self.taken = iter(io.StringIO(content, newline='')), []

  def __iter__(self) -> Iterator[str]:
    return self

  def __next__(self) -> str:
    self.taken.append(next(self.lines))
    return self.taken[-1]

  def take(self) -> str:
    """Returns the lines read since the last call."""
    lines, self.taken = ''.join(self.taken), []
    return lines


def read_csv(
  content: str,
  path: pathlib.Path,
  text: str,
  is_image: Callable[[str], bool],
) -> Table:
  """Reads a CSV file, its fields separated by the delimiter of its header.

  A last column of text may have delimiters without quotes: they are kept.
  Spaces before a field in quotes are not a part of it.

  Raises:
    ValueError: for rows with too many fields, or quotes that do not match.
  """
  lines = Lines(content)
  delimiter = delimiter_of(content)
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  rows, wrong, joined, number = [], [], 0, 1
  limit = csv.field_size_limit(max(len(content), csv.field_size_limit()))
  try:
    header = [name.strip() for name in next(reader, [])]
    lines.take()
    for fields in reader:
      place, raw = f'line {number + 1}', lines.take()
      number = reader.line_num
      extra = len(fields) - len(header)
      if extra > 0 and any(fields[len(header) :]):
        fields = join_last(fields, header, text, raw, delimiter)
        joined += fields is not None and unquote(fields[-1]) == fields[-1]
      if fields is None or swallows(fields, delimiter, is_image):
        wrong.append(f'{place}: {raw.strip():.60}')
      elif fields:
        rows.append((place, dict(zip(header, map(unquote, fields)))))
  except csv.Error as error:
    raise ValueError(
      f'{path}: the quotes of the row that begins in line {number + 1} do not '
      f'match ({error}): put text in double quotes, and double those inside it'
    ) from error
  finally:
    csv.field_size_limit(limit)
  if wrong:
    raise indexed.dataset_error(
      f'{path}: rows with more than the {len(header)} fields {header}, or with '
      'a quote that takes in the next row',
      wrong,
      f'Put every text with a {delimiter!r} in double quotes, and double those '
      'inside it, or write metadata.jsonl.',
    )
  return Table(header, rows, joined)


def delimiter_of(content: str) -> str:
  """Finds what separates the columns of a header."""
  first = content.partition('\n')[0].partition('\r')[0]
  for delimiter in DELIMITERS:
    if FILE in [field.strip(' "') for field in first.split(delimiter)]:
      return delimiter
  return DELIMITERS[0]


def join_last(
  fields: list[str], header: list[str], text: str, raw: str, delimiter: str
) -> list[str] | None:
  """Joins the fields of a text without quotes; None where that is a guess.

  Args:
    fields: of the row, more than the header has.
    header: columns.
    text: column of the caption.
    raw: the row as it is in the file.
    delimiter: between the fields.
  """
  last = len(header) - 1
  joined = delimiter.join(fields[last:])
  whole = raw.rstrip('\r\n').endswith(delimiter + joined)
  if header[last] == text and last and whole:
    return [*fields[:last], joined]
  return None


def unquote(field: str) -> str:
  """Removes quotes behind a space, which Python's csv has for text."""
  inside = field.strip(' ')[1:-1]
  quoted = field.startswith(' ') and field.strip(' ') == f'"{inside}"'
  if quoted and '"' not in inside.replace('""', ''):
    return inside.replace('""', '"')
  return field


def swallows(
  fields: Iterable[str], delimiter: str, is_image: Callable[[str], bool]
) -> bool:
  """Whether a field of several lines has one that begins with an image."""
  return any(
    is_image(line.split(delimiter)[0].strip(' "\r'))
    for field in fields
    if '\n' in field
    for line in field.split('\n')[1:]
  )
