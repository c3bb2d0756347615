"""Work that steps need not wait for, done in a thread, in order."""

import collections
import concurrent.futures
from collections.abc import Callable
from typing import Any


class Background:
  """Calls functions one after another in a thread; none of them uses a device.

  Their errors are raised by the next call of `check`, `run` or `close`.
  """

  def __init__(self):
    self._pool = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix='background'
    )
    self._pending = collections.deque()

  def run(self, function: Callable[..., Any], *args: Any) -> None:
    """Calls function(*args) once what was passed before is done."""
    self.check()
    self._pending.append(self._pool.submit(function, *args))

  def check(self) -> None:
    """Raises the first error of what is done so far."""
    while self._pending and self._pending[0].done():
      self._pending.popleft().result()

  def close(self) -> None:
    """Waits until all is done, and raises the first error."""
    self._pool.shutdown()
    self.check()
