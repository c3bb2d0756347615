"""Which programs are shown while they compile, on a clock of the test."""

import jax
import numpy as np
import pytest

from sdxl_jax.programs import compile_progress

START = compile_progress.COMPILING


class Clock:
  """Stands for the module `time`: nothing waits."""

  def __init__(self):
    self.now = 0.0

  def monotonic(self):
    return self.now

  def sleep(self, seconds):
    pass


class NoThread:
  """Stands for a thread that never looks."""

  def __init__(self, **options):
    pass

  def start(self):
    pass


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(compile_progress, 'time', clock)
  monkeypatch.setattr(compile_progress.threading, 'Thread', NoThread)
  return clock


def compile_for(progress, clock, seconds, read=False, name='jit(f)'):
  """Lets a program compile for so long, with a look each second."""
  progress.start(START, 0.0, fun_name=name)
  for _ in range(seconds):
    clock.now += 1
    progress.look(clock.now)
  if read:
    progress.read(compile_progress.FROM_CACHE)
  progress.end(START, float(seconds), fun_name=name)
  progress.look(clock.now)


def test_lines_of_what_takes_long(clock):
  lines = []
  progress = compile_progress.CompileProgress(False, lines.append)
  compile_for(progress, clock, 2)
  compile_for(progress, clock, 0)
  assert not lines
  compile_for(progress, clock, 9)
  assert lines == ['compiling f', 'compiled f in 9 s']
  with compile_progress.naming('the decoder') as stage:
    compile_for(progress, clock, 4, read=True)
    assert stage.was_kept
    compile_for(progress, clock, 1)
    assert not stage.was_kept
  assert lines[2:] == ['compiling the decoder', 'read the decoder in 4 s']
  with compile_progress.naming('16x16', is_reported=True) as stage:
    compile_for(progress, clock, 4)
  assert lines[4:] == ['compiling 16x16'] and not stage.was_kept
  progress.start('another event', 0.0)
  progress.end('another event', 9.0)
  assert len(lines) == 5


def test_a_terminal_has_one_line_that_counts(clock, monkeypatch):
  shown = []

  class Bar:
    def __init__(self, **options):
      assert not options['leave']

    def set_description_str(self, text):
      shown.append(text)

    def close(self):
      shown.append('closed')

  monkeypatch.setattr(compile_progress.tqdm, 'tqdm', Bar)
  progress = compile_progress.CompileProgress(True, shown.append)
  compile_for(progress, clock, 5)
  assert shown == [*(f'compiling f, {s} s' for s in (3, 4, 5)), 'closed']


def test_what_jax_compiles_is_shown(monkeypatch):
  """By JAX's own events, from a thread that ends when nothing is compiled."""
  lines = []
  monkeypatch.setattr(compile_progress, 'PATIENCE', 0.0)
  monkeypatch.setattr(compile_progress, 'TICK', 0.01)
  progress = compile_progress.CompileProgress(False, lines.append)
  monkeypatch.setattr(compile_progress, 'CompileProgress', lambda *a: progress)
  monkeypatch.setattr(compile_progress, '_shown', [])
  compile_progress.show()
  compile_progress.show()  # once, however often it is called
  assert compile_progress._shown == [progress]
  with compile_progress.naming('a chain'):
    jax.jit(chain)(np.ones((4, 4), np.float32))
  assert lines[0] == 'compiling a chain' and ' a chain in ' in lines[1]
  ticker = progress._ticker
  if ticker is not None:
    ticker.join(10)
  assert progress._ticker is None


def chain(x):
  """Compiles for long enough to be looked at."""
  for i in range(60):
    x = x @ x + i
  return x
