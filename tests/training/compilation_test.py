"""Programs that are compiled during training, with stand-ins for compilers."""

import threading

import pytest

from sdxl_jax.training import compilation, train_state


class Task:
  micro_batches = 2
  trained = staticmethod(train_state.whole)


class State:
  params = 'params'


@pytest.fixture
def compiled(monkeypatch):
  """What was compiled, in order."""
  names, lock = [], threading.Lock()

  def record(name):
    with lock:
      names.append(name)
    return name

  def compile_gradients(task, mesh, params, frozen, bucket):
    return record(bucket)

  def compile_update(task, mesh, state):
    return record('update')

  def compile_add(params):
    return record('add')

  for compiler in (compile_gradients, compile_update, compile_add):
    monkeypatch.setattr(compilation, compiler.__name__, compiler)
  return names


def make(buckets, say=lambda line: None, threads=1):
  return compilation.Programs(Task, None, State, {}, buckets, threads, say)


def test_order_of_first_use(compiled):
  buckets = [(16, 24), (24, 16), (16, 16)]
  programs = make(buckets)
  assert programs.gradients((16, 16)) == (16, 16)
  # The first step needs its bucket, the update and, of two micro-batches, the
  # sum.
  assert compiled == [(16, 24), 'update', 'add', (24, 16), (16, 16)]
  assert (programs.update(), programs.add()) == ('update', 'add')
  programs.close()


@pytest.mark.parametrize('threads', [1, 8])
def test_each_line_counts_its_own_bucket(compiled, threads):
  buckets, lines = [(16, side) for side in range(16, 56, 8)], []
  programs = make(buckets, lines.append, threads)
  for bucket in buckets:
    programs.gradients(bucket)
  programs.update(), programs.add()
  programs.close()
  own = [line for line in lines if 'x' in line.split()[1]]
  assert [line.split('ready: ')[1] for line in own] == [
    f'{i} of 5' for i in range(1, 6)
  ]
  assert len(lines) == 7
  if threads == 1:
    assert lines[0] == 'compiled 16x16 in 0 s; buckets ready: 1 of 5'
    assert lines[1] == 'compiled the update in 0 s; buckets ready: 1 of 5'
    assert lines[2] == 'compiled the sum in 0 s; buckets ready: 1 of 5'


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

  monkeypatch.setattr(compilation, 'compile_gradients', fail)
  programs = make([(16, 24)])
  with pytest.raises(ValueError, match='no room'):
    programs.gradients((16, 24))
  programs.close()


def test_waiting_for_a_program_can_be_given_up(monkeypatch, compiled):
  done = threading.Event()
  monkeypatch.setattr(
    compilation, 'compile_gradients', lambda *args: done.wait(30)
  )
  programs = make([(16, 24)])
  told = iter([False, True])
  with pytest.raises(compilation.Interrupted):
    programs.gradients((16, 24), lambda: next(told))
  done.set()
  assert programs.gradients((16, 24), lambda: True)  # compiled by now
  programs.close()
