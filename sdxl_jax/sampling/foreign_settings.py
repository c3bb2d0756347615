"""Our settings for the text in another program's image."""

from typing import Any, NamedTuple

# What is taken for a sampler or a schedule that we lack.
INSTEAD = "the model's own is taken"


class ForeignSettings(NamedTuple):
  """Settings that were read from another program's text.

  Attributes:
    program: its name.
    fields: {name: value} of a sample_request.Request.
    left_out: what is not used, for the user.
    model: name of the model that the image was made with, '' if unknown.
  """

  program: str
  fields: dict[str, Any]
  left_out: list[str]
  model: str


def number(value: Any, kind: type) -> Any:
  """Returns a value as int or float; None if it is none."""
  try:
    found = kind(value)
  except (TypeError, ValueError, OverflowError):
    return None
  # Neither true nor a half is a whole number.
  is_rounded = isinstance(value, float) and kind is int and found != value
  return None if isinstance(value, bool) or is_rounded else found
