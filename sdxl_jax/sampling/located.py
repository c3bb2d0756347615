"""Requests with the places where they stand, which errors and warnings name."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from sdxl_jax.sampling import sample_request


class Located(NamedTuple):
  """A request, and where it stands: file and line, '' for flags."""

  location: str
  request: sample_request.Request

  def line(self, message: str) -> str:
    """Returns a message that begins with the location."""
    return f'{self.location}: {message}' if self.location else message


@contextlib.contextmanager
def naming(location: str) -> Iterator[None]:
  """Puts a location before errors of the body."""
  try:
    yield
  except (ValueError, OSError) as error:
    if not location:
      raise
    for kind in (FileNotFoundError, OSError, ValueError):
      if isinstance(error, kind):
        raise kind(f'{location}: {error}') from error
