"""What a caption may be: text, bytes of text, or a list of either.

Datasets store a caption as a string, Hugging Face, COCO and TFDS several as a
list, of strings or of structs with a field of text. The first one is used, or
one is chosen in each pass; a list has a caption if one of its elements is one.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.data.sources import indexed, text_decoding

MAX_LENGTH = 1_000_000  # characters; more is no caption, but a document
MAX_BYTES = 4 * MAX_LENGTH
MAX_DEPTH = 8  # of lists within lists
MARK = '\ufeff'  # of the byte order


class Caption(NamedTuple):
  """The text of a caption, or why there is none."""

  text: str
  problem: int = indexed.USABLE
  detail: str = ''  # of the problem, in words
  count: int = 1  # captions that the record has, of which this is the first
  texts: tuple[str, ...] = ()  # all of several, where all are used


NONE = Caption('', indexed.NO_CAPTION)


def parse(
  value: Any, encoding: str = '', several: bool = False, depth: int = 0
) -> Caption:
  """Finds the caption in a value of a dataset.

  Args:
    value: of a column, member or field; None where it is missing.
    encoding: of bytes without a mark; '': UTF-8.
    several: whether all captions of a list are used, or only the first.
    depth: of the lists that the value is within.
  """
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, bytes | bytearray | memoryview):
    if len(value) > MAX_BYTES:
      return too_long(f'over {MAX_BYTES:,} bytes')
    try:
      value = text_decoding.decode(bytes(value), encoding)
    except text_decoding.BadEncoding as error:
      return Caption('', indexed.BAD_ENCODING, str(error))
  if isinstance(value, str):
    return of_text(value)
  if value is None or isinstance(value, float) and math.isnan(value):
    return NONE
  if isinstance(value, list | tuple):
    if depth == MAX_DEPTH:
      detail = f'over {MAX_DEPTH} lists within one another; write one list'
      return Caption('', indexed.BAD_CAPTION, detail)
    found = [parse(element, encoding, several, depth + 1) for element in value]
    return first(found, several)
  return Caption('', indexed.BAD_CAPTION, refusal(value))


def of_text(text: str) -> Caption:
  """Makes a caption of a string, without the spaces around it."""
  # A file that was saved with a mark twice has a second one, as a character.
  text = text.strip().strip(MARK).strip()
  if not text:
    return NONE
  if len(text) > MAX_LENGTH:
    return too_long(f'{len(text):,} characters, over {MAX_LENGTH:,}')
  if '\0' in text:
    return Caption('', indexed.BAD_ENCODING, 'a NUL character; write no binary')
  # JSON can hold half a character, which no tokenizer takes.
  if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
    detail = 'half of a surrogate pair; write the caption again as UTF-8'
    return Caption('', indexed.BAD_ENCODING, detail)
  return Caption(text)


def too_long(length: str) -> Caption:
  """Refuses a document in place of a caption."""
  return Caption('', indexed.BAD_CAPTION, f'{length}, which no caption has')


def first(captions: Iterable[Caption], several: bool = False) -> Caption:
  """Chooses the first usable caption, or else the first problem.

  Args:
    captions: of a list.
    several: whether all captions are kept, not only the first.
  """
  captions = list(captions)
  usable = [c for c in captions if c.problem == indexed.USABLE]
  if usable:
    count, texts = sum(c.count for c in usable), ()
    if several and count > 1:
      texts = tuple(text for c in usable for text in c.texts or (c.text,))
    return usable[0]._replace(count=count, texts=texts)
  wrong = [c for c in captions if c.problem != indexed.NO_CAPTION]
  return wrong[0] if wrong else NONE


def of_example(caption: Caption) -> dict[str, Any]:
  """Returns the fields of an example that hold its caption, or captions."""
  if caption.texts:
    return {'caption': caption.text, 'captions': caption.texts}
  return {'caption': caption.text}


def refusal(value: Any) -> str:
  """Says why a value is no caption, and what to do."""
  if isinstance(value, dict):
    return (
      f'a struct of {list(value)}; name its field of text in the setting '
      "`caption`, with a dot, such as 'caption.en'"
    )
  return (
    f'{value!r:.60} is {type(value).__name__}, not text; write captions, such '
    'as the names of labels, or name another column in the setting `caption`'
  )


def name_labels(value: Any, names: Sequence[str]) -> Any:
  """Replaces labels by their names.

  Args:
    value: a label or a list of labels, which are numbers; -1 is no label.
    names: of the labels; (): the values are no labels, and returned.
  """
  if isinstance(value, np.ndarray | np.generic):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [name_labels(element, names) for element in value]
  if not names or not isinstance(value, int):
    return value
  return names[value] if 0 <= value < len(names) else None


def look_up(fields: dict[str, Any], name: str) -> Any:
  """Finds a value by its name, or by a path with dots; None: there is none.

  Args:
    fields: {name: value} of a record.
    name: of a field, or 'captions.text', the field of a struct, or of each of a
      list of structs.
  """
  if name in fields:
    return fields[name]
  head, dot, rest = name.partition('.')
  if not dot or head not in fields:
    return None
  return descend(fields[head], rest)


def descend(value: Any, name: str) -> Any:
  """Finds a field in a struct, or in each struct of a list."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [descend(element, name) for element in value]
  return look_up(value, name) if isinstance(value, dict) else None
