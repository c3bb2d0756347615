"""Bytes of text files to strings: UTF-8, UTF-16 or UTF-32, or a set encoding.

Nothing is replaced: what cannot be decoded is refused, with its place.
"""

import codecs
import re

# Marks that begin a file and name its encoding; that of UTF-32 begins with that
# of UTF-16.
MARKS = {
  codecs.BOM_UTF8: 'utf-8',
  codecs.BOM_UTF32_LE: 'utf-32-le',
  codecs.BOM_UTF32_BE: 'utf-32-be',
  codecs.BOM_UTF16_LE: 'utf-16-le',
  codecs.BOM_UTF16_BE: 'utf-16-be',
}


# Other characters that str.splitlines splits at may be part of a text.
LINE_END = re.compile(r'\r\n|\n|\r')


class BadEncoding(ValueError):
  """Raised for text that is not in the encoding that it should have."""


def check(encoding: str, field: str) -> None:
  """Raises ValueError for an encoding that Python does not know.

  Args:
    encoding: name of a codec; '': none is set.
    field: of the config that holds it, for the error.
  """
  try:
    # Also refuses codecs that are not of text, such as base64.
    'a'.encode(encoding or 'utf-8')
  # Python raises others than LookupError for codecs that only refuse.
  except (LookupError, ValueError) as error:
    raise ValueError(
      f'{field} is {encoding!r}, which is no encoding of text that Python '
      "knows: write one such as 'cp1252', 'cp932' or 'gb18030', or '' for UTF-8"
    ) from error


def line_of(before: str) -> int:
  """Returns the number of the line behind some text."""
  return len(LINE_END.findall(before)) + 1


def decode(data: bytes, encoding: str = '', setting: str = 'encoding') -> str:
  """Decodes text, without the mark at its start.

  Args:
    data: bytes of a file, or of a value.
    encoding: of text without a mark; '': UTF-8.
    setting: by which the user may name another encoding; '': there is none.

  Raises:
    BadEncoding: with line and byte of what is not in the encoding.
  """
  mark = next((mark for mark in MARKS if data.startswith(mark)), b'')
  name = MARKS.get(mark) or encoding or 'utf-8'
  data = data[len(mark) :]
  try:
    text = data.decode(name)
  except UnicodeDecodeError as error:
    line = line_of(data[: error.start].decode(name, 'replace'))
    raise BadEncoding(
      f'byte {len(mark) + error.start} (0x{data[error.start]:02x}), in line '
      f'{line}, is not {name}; convert it to UTF-8'
      + (
        f', or name its encoding in the setting `{setting}`' if setting else ''
      )
    ) from error
  # Every second byte of UTF-16 is often NUL, which UTF-8 allows.
  if '\0' in text:
    line = line_of(text[: text.index('\0')])
    raise BadEncoding(
      f'line {line} has a NUL character, as has UTF-16 without a mark that is '
      f'read as {name}; convert it to UTF-8'
      + (f", or set `{setting}` to 'utf-16-le'" if setting else '')
    )
  return text
