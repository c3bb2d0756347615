"""Batches that a thread places: all of them, in order, with their errors."""

import pytest

from sdxl_jax.training import placing


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
  monkeypatch.setattr(
    placing.sharding, 'put_batch', lambda batch, mesh, spec: (batch, spec)
  )


def take(batches, count):
  return placing.PlacedBatches(batches, None, lambda bucket: bucket, count)


def test_as_many_as_there_are_steps():
  taken = []

  def read():
    for i in range(10):
      taken.append(i)
      yield (16, 16 + i), i

  placed = take(read(), 3)
  assert list(placed) == [((16, 16 + i), (i, (16, 16 + i))) for i in range(3)]
  placed.close()
  assert taken == [0, 1, 2]  # none is read for nothing
  assert list(take(read(), 0)) == []


def test_an_error_of_reading_reaches_the_step():
  def read():
    yield (16, 16), 0
    raise ValueError('fox.png is broken')

  placed = take(read(), 3)
  next(placed)
  with pytest.raises(ValueError, match='fox.png is broken'):
    next(placed)
  placed.close()
