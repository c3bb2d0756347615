"""What the text of another program's image says, in our settings."""

from typing import Any, NamedTuple


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
    return kind(value)
  except (TypeError, ValueError, OverflowError):
    return None
