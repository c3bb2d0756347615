"""Programs compiled beside the training, with made-up compilers."""

import threading

import pytest

from sdxl_jax.training import compilation, tasks


class Task:
  parts = 2


class State:
  params = 'params'


@pytest.fixture
def compiled(monkeypatch):
  """What was compiled, in order."""
  done, lock = [], threading.Lock()

  def note(what):
    with lock:
      done.append(what)
    return what

  monkeypatch.setattr(
    tasks, 'compile_gradients', lambda task, mesh, p, f, bucket: note(bucket)
  )
  monkeypatch.setattr(tasks, 'compile_update', lambda *args: note('update'))
  monkeypatch.setattr(tasks, 'compile_add', lambda *args: note('add'))
  return done


def make(buckets, say=lambda line: None):
  return compilation.Programs(
    Task, None, State, {}, buckets, threads=1, say=say
  )


def test_order_of_first_use(compiled):
  buckets = [(16, 24), (24, 16), (16, 16)]
  said = []
  programs = make(buckets, said.append)
  assert programs.gradients((16, 16)) == (16, 16)
  # The first step needs its bucket, the update and, of two parts, the sum.
  assert compiled == [(16, 24), 'update', 'add', (24, 16), (16, 16)]
  assert (programs.update, programs.add) == ('update', 'add')
  assert said[-1].startswith('compiled 16x16 in 0 s')
  programs.close()


def test_a_shape_outside_the_table_is_refused(compiled):
  programs = make([(16, 24)])
  with pytest.raises(ValueError, match=r'size \(24, 24\).*\(16, 24\)'):
    programs.gradients((24, 24))
  programs.close()


def test_an_error_reaches_the_step_that_needs_the_program(
  monkeypatch, compiled
):
  def fail(*args):
    raise ValueError('no room')

  monkeypatch.setattr(tasks, 'compile_gradients', fail)
  programs = make([(16, 24)])
  with pytest.raises(ValueError, match='no room'):
    programs.gradients((16, 24))
  programs.close()
