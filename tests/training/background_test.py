"""Work in a thread: in order, and no error is lost."""

import threading

import pytest

from sdxl_jax.training import background


def fail():
  raise OSError('the disk is full')


def test_in_order_while_the_caller_goes_on():
  work, may_begin, done = background.Background(), threading.Event(), []
  work.run(may_begin.wait, 30)
  for i in range(3):
    work.run(done.append, i)
  work.check()
  assert done == []
  may_begin.set()
  work.close()
  assert done == [0, 1, 2]


def test_an_error_is_raised_once_it_is_known():
  work = background.Background()
  work.run(fail)
  with pytest.raises(OSError, match='disk is full'):
    for _ in range(1000):
      work.check()
      threading.Event().wait(0.01)
  work.run(fail)
  with pytest.raises(OSError, match='disk is full'):
    work.close()
