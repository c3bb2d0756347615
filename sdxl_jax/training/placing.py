"""Places batches on the devices, one ahead of the step that takes it."""

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from sdxl_jax.distributed import sharding

Bucket = tuple[int, int]  # (height, width) in px


class PlacedBatches:
  """Iterator of (bucket, batch on the devices), made in a thread.

  While a step runs, the batch of the one after the next is read and copied, so
  that the loop neither waits for it nor copies. What was made ahead is dropped
  at the end of a start: the position in the data counts steps.

  Args:
    batches: iterator of (bucket, rows of this process); no other thread may
      take from it.
    mesh: of all devices.
    batch_spec: bucket -> shapes of the global batch.
    count: batches to take in all.
  """

  def __init__(
    self,
    batches: Iterator[tuple[Bucket, dict[str, np.ndarray]]],
    mesh: jax.sharding.Mesh,
    batch_spec: Callable[[Bucket], dict[str, jax.ShapeDtypeStruct]],
    count: int,
  ):
    self._batches, self._mesh, self._batch_spec = batches, mesh, batch_spec
    self._left = count
    self._pool = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix='placing'
    )
    self._next = self._begin()

  def _begin(self) -> concurrent.futures.Future | None:
    """Starts to make the next batch, if there is one."""
    if self._left < 1:
      return None
    self._left -= 1
    return self._pool.submit(self._make)

  def _make(self) -> tuple[Bucket, dict[str, jax.Array]]:
    bucket, batch = next(self._batches)
    spec = self._batch_spec(bucket)
    return bucket, sharding.put_batch(batch, self._mesh, spec)

  def __iter__(self) -> Iterator[tuple[Bucket, dict[str, jax.Array]]]:
    return self

  def __next__(self) -> tuple[Bucket, dict[str, Any]]:
    """Returns the batch; raises the error of reading it."""
    if self._next is None:
      raise StopIteration
    made = self._next.result()
    self._next = self._begin()
    return made

  def close(self) -> None:
    """Ends the thread, which may still be reading a batch."""
    self._pool.shutdown(wait=False, cancel_futures=True)
