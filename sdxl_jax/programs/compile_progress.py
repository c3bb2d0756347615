"""Shows which programs are being compiled, and for how long.

JAX reports the start and the end of each; programs that take seconds appear as
a line that counts them on a terminal, and elsewhere as two lines.
"""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tqdm

COMPILING = '/jax/core/compile/backend_compile_duration'
FROM_CACHE = '/jax/compilation_cache/cache_hits'
PATIENCE = 3.0  # seconds of a program before which nothing is shown
TICK = 1.0  # seconds between two looks


@dataclasses.dataclass
class Stage:
  """Programs that one thread compiles for one purpose."""

  name: str
  is_reported: bool  # by others, once it is done
  compiled: int = 0  # or read
  from_cache: int = 0

  @property
  def was_kept(self) -> bool:
    """Whether all of its programs were in the cache."""
    return 0 < self.compiled == self.from_cache


@dataclasses.dataclass
class Running:
  """A program that is being compiled."""

  name: str
  is_reported: bool
  began: float
  is_shown: bool = False
  was_kept: bool = False  # in the cache


class CompileProgress:
  """Shows the programs that all threads compile; see `show`.

  Args:
    has_terminal: whether a line may be written over.
    say: prints a line for the user.
  """

  def __init__(self, has_terminal: bool, say: Callable[[str], None]):
    self._has_terminal, self._say = has_terminal, say
    self._lock = threading.Lock()
    self._running: dict[int, Running] = {}  # by thread
    self._ticker: threading.Thread | None = None
    self._bar: tqdm.tqdm | None = None

  def start(self, event: str, value: float, **details: Any) -> None:
    """Takes note of a program that begins to compile."""
    del value
    if event != COMPILING:
      return
    stage = current()
    name = stage.name if stage else plain_name(details.get('fun_name', ''))
    running = Running(name, bool(stage and stage.is_reported), time.monotonic())
    with self._lock:
      self._running[threading.get_ident()] = running
      if self._ticker is None:
        self._ticker = threading.Thread(target=self._watch, daemon=True)
        self._ticker.start()

  def read(self, event: str, **details: Any) -> None:
    """Takes note of a program that was in the cache; it ends after this."""
    del details
    if event != FROM_CACHE:
      return
    if stage := current():
      stage.from_cache += 1
    with self._lock:
      if running := self._running.get(threading.get_ident()):
        running.was_kept = True

  def end(self, event: str, seconds: float, **details: Any) -> None:
    """Takes note of a program that is compiled, or read."""
    del details
    if event != COMPILING:
      return
    if stage := current():
      stage.compiled += 1
    with self._lock:
      done = self._running.pop(threading.get_ident(), None)
      if done and done.is_shown and not self._has_terminal:
        if not done.is_reported:
          made = 'read' if done.was_kept else 'compiled'
          self._say(f'{made} {done.name} in {seconds:.0f} s')

  def _watch(self) -> None:
    """Shows what takes long, until nothing is compiled."""
    while True:
      time.sleep(TICK)
      with self._lock:
        if jax.process_index() == 0:
          self.look(time.monotonic())
        if not self._running:
          self._ticker = None
          return

  def look(self, now: float) -> None:
    """Shows the programs that have been compiled for long, at a time in s."""
    slow = [x for x in self._running.values() if now - x.began >= PATIENCE]
    if not self._has_terminal:
      for running in slow:
        if not running.is_shown:
          self._say(f'compiling {running.name}')
    elif slow:
      if self._bar is None:
        self._bar = tqdm.tqdm(bar_format='{desc}', leave=False)
      parts = [f'{x.name}, {now - x.began:.0f} s' for x in slow]
      self._bar.set_description_str(f'compiling {"; ".join(parts)}')
    elif self._bar is not None:
      self._bar.close()
      self._bar = None
    for running in slow:
      running.is_shown = True


_stages = threading.local()
_shown: list[CompileProgress] = []  # one for the process, as JAX's listeners


def show() -> None:
  """Shows from now on, on stderr, what this process compiles."""
  if _shown:
    return
  has_terminal = sys.stderr.isatty()
  progress = CompileProgress(has_terminal, say)
  _shown.append(progress)
  jax.monitoring.register_scalar_listener(progress.start)
  jax.monitoring.register_event_duration_secs_listener(progress.end)
  jax.monitoring.register_event_listener(progress.read)


def say(line: str) -> None:
  """Prints a line on stderr, above the bars that may be there."""
  with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
    tqdm.tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def naming(name: str, is_reported: bool = False) -> Iterator[Stage]:
  """Names what this thread compiles while the context lasts.

  Args:
    name: for the user, such as 'the decoder at 1024 x 1024 px'.
    is_reported: whether the caller prints when it is compiled.
  """
  stages = _stages.__dict__.setdefault('stack', [])
  stages.append(Stage(name, is_reported))
  try:
    yield stages[-1]
  finally:
    stages.pop()


def current() -> Stage | None:
  """Returns the innermost stage of this thread, if there is one."""
  stages = _stages.__dict__.get('stack')
  return stages[-1] if stages else None


def plain_name(function: str) -> str:
  """Returns the name of a function without JAX's jit( )."""
  return function.removeprefix('jit(').removesuffix(')') or 'a program'
