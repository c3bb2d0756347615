"""Reads files of prompts: lines, JSON lines with settings, or a table."""

import csv
import io
import json
import os
import pathlib
from typing import Any, NamedTuple, NoReturn

from sdxl_jax.data.sources import text_decoding
from sdxl_jax.sampling import line_options, sample_request

JSON_LINES = ('.jsonl', '.ndjson')
TABLES = {'.tsv': '\t', '.csv': ','}  # and what separates their columns
COLUMNS = 'prompt', 'caption'  # of which a table has one
MARK = '\ufeff'  # of the encoding, at the start of a file


class Line(NamedTuple):
  """The settings of a line.

  Attributes:
    location: file and number of the line, for errors.
    fields: {name: value} of a Request.
  """

  location: str
  fields: dict[str, Any]


def read(path: str | os.PathLike[str]) -> list[Line]:
  """Reads the lines of a prompts file.

  The text is UTF-8, or begins with the mark of another encoding of Unicode.
  Each line is a prompt, maybe with options, see line_options, or in .jsonl an
  object; empty lines are skipped. A table, .tsv or .csv, has by its first row a
  column of COLUMNS, as MLPerf's captions have; other columns are not read.

  Raises:
    ValueError: for text in another encoding, and for a line that is no such
      object, with its number.
    OSError: where the file cannot be read.
  """
  path = pathlib.Path(path)
  is_json = path.suffix.lower() in JSON_LINES
  if path.suffix.lower() == '.json':
    raise ValueError(
      f'{path}: prompts are read from .txt, a prompt on each line, or .jsonl, '
      'an object on each line: write it as one of these'
    )
  if path.suffix.lower() in TABLES:
    return read_table(path)
  lines = []
  for number, text in enumerate(text_decoding.LINE_END.split(decode(path)), 1):
    text = text.removeprefix(MARK)  # of a file that was appended to another
    if not text.strip():
      continue
    location = f'{path}, line {number}'
    if is_json:
      fields = parse(text, location)
    else:
      check_plain(text, location)
      fields = line_options.parse(text, location)
    lines.append(Line(location, sample_request.check(fields, location)))
    if fields.get('prompt') is None:
      raise ValueError(f'{location} has no "prompt"')
  if not lines:
    raise ValueError(f'{path} has no prompts: write one on each line')
  return lines


def read_table(path: pathlib.Path) -> list[Line]:
  """Reads the prompts of a table; see `read`."""
  text = decode(path).removeprefix(MARK)
  separator = TABLES[path.suffix.lower()]
  rows = csv.DictReader(io.StringIO(text, newline=''), delimiter=separator)
  names = rows.fieldnames or []
  found = [name for name in COLUMNS if name in names]
  if len(found) != 1:
    raise ValueError(
      f'{path} has the columns {names}, of which one must be '
      f'{" or ".join(COLUMNS)}'
    )
  lines = []
  for row in rows:
    location, prompt = f'{path}, line {rows.line_num}', row[found[0]]
    if not (prompt or '').strip():
      raise ValueError(f'{location} has no {found[0]}')
    fields = {'prompt': prompt.strip()}
    lines.append(Line(location, sample_request.check(fields, location)))
  if not lines:
    raise ValueError(f'{path} has no prompts: write one in each row')
  return lines


def decode(path: pathlib.Path) -> str:
  """Decodes a file.

  Raises:
    ValueError: with the line that is in another encoding.
  """
  try:
    return text_decoding.decode(path.read_bytes(), setting='')
  except text_decoding.BadEncoding as error:
    raise ValueError(f'{path}: {error}') from error


def check_plain(text: str, location: str) -> None:
  """Raises ValueError for a line of JSON in a file of plain prompts."""
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return
  if isinstance(value, dict):
    raise ValueError(
      f'{location} is a JSON object, which is read as such in .jsonl alone: '
      'rename the file'
    )


def parse(text: str, location: str) -> Any:
  """Parses a line of JSON.

  Raises:
    ValueError: for what is no JSON, a name given twice, NaN or infinity.
  """

  def refuse(constant: str) -> NoReturn:
    raise ValueError(f'{constant} is no number of JSON')

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
      raise ValueError(f'{twice[0]!r} is given twice')
    return dict(pairs)

  try:
    return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
  except RecursionError:
    raise ValueError(f'{location} is JSON nested too deep') from None
  except ValueError as error:
    raise ValueError(f'{location} is not JSON: {error}') from None
