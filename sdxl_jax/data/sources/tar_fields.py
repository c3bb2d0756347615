"""The json member of a record of a tar."""

import json
from typing import Any

from sdxl_jax.data.sources import text_decoding


class BadFields(ValueError):
  """Raised for a json member that is not a JSON object."""


def parse(data: bytes, encoding: str) -> dict[str, Any]:
  """Parses a json member.

  Raises:
    text_decoding.BadEncoding: if it is not text.
    BadFields: if it is not a JSON object.
  """
  text = text_decoding.decode(data, encoding)
  try:
    fields = json.loads(text)
  # Of brackets within brackets, the parser runs out of stack.
  except (ValueError, RecursionError) as error:
    raise BadFields(f'{error}: {text!r:.60}') from error
  if not isinstance(fields, dict):
    raise BadFields(f'it holds {type(fields).__name__}, not an object')
  return fields
