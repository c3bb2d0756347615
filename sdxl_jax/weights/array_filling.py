"""Fills new arrays with tensors that are read, by several threads.

Reading, checking, casting and copying leave Python to other threads, and happen
in blocks that a cache holds. Arrays are filled in order and handed on one by
one, so that the host needs memory for a few of them. One thread fills a tensor:
two that write columns of the same rows would both fault the same pages.
"""

import collections
import ctypes
import functools
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np

from sdxl_jax.weights import checked_cast, safetensors_file

BLOCK = 2**22  # bytes that a thread reads, casts and copies at once
AHEAD = 2**29  # bytes of the arrays that are filled at once, or a larger one
MOST_THREADS = 8  # of which each may hold a whole tensor of a pickle
LINE = 64  # bytes that a core writes to memory at once, at least
SMALL = 2**14  # numbers below which numpy is the fastest to transpose
BITS = {2: np.uint16, 4: np.uint32}
PAGE = 4096  # bytes, or a fraction of a page of this machine
MADV_POPULATE_WRITE = 23  # Linux
Part = tuple[safetensors_file.LazyTensor, np.ndarray]


class Wanted(NamedTuple):
  """An array to make of tensors."""

  shape: tuple[int, ...]
  dtype: np.dtype
  sharding: jax.sharding.Sharding | None  # None: the array stays in numpy
  # (array) -> its tensors, and the view of the array that each of them fills.
  parts: Callable[[np.ndarray], list[Part]]
  # Of the filled array, what is made of it and placed; None: itself.
  finish: Callable[[np.ndarray], Any] | None = None


class Filling(NamedTuple):
  """An array that threads fill."""

  array: np.ndarray
  finish: Callable[[np.ndarray], Any]
  jobs: list[futures.Future]


def fill(
  arrays: Sequence[Wanted], watch: Callable[[int], Any] = lambda count: None
) -> list[Any]:
  """Makes arrays, each on its sharding, or what is made of them.

  Args:
    arrays: to make, in this order.
    watch: called with the bytes of each array that was made.

  Raises:
    ValueError: of the first tensor that cannot be read, is not finite, or
      overflows in the dtype of its array.
  """
  made, pending = [], collections.deque()
  pool = futures.ThreadPoolExecutor(count_threads())

  def finish():
    filling = pending.popleft()
    for job in filling.jobs:
      job.result()
    watch(filling.array.nbytes)
    made.append(filling.finish(filling.array))

  try:
    for wanted in arrays:
      size = math.prod(wanted.shape) * np.dtype(wanted.dtype).itemsize
      while pending and size + sum(f.array.nbytes for f in pending) > AHEAD:
        finish()
      pending.append(start(pool, wanted))
    while pending:
      finish()
  # After an error or an interrupt, what was not begun is dropped.
  finally:
    pool.shutdown(cancel_futures=True)
  return made


def count_threads() -> int:
  """Returns one thread for each core that this process may use, or fewer."""
  return min(MOST_THREADS, len(os.sched_getaffinity(0)))


def start(pool: futures.Executor, wanted: Wanted) -> Filling:
  """Makes an array that threads fill from now on."""
  array = empty_aligned(wanted.shape, wanted.dtype)
  jobs = [
    pool.submit(store_tensor, tensor, view)
    for tensor, view in wanted.parts(array)
  ]
  finish = functools.partial(put, sharding=wanted.sharding)
  return Filling(array, wanted.finish or finish, jobs)


def empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Makes a new array that the CPU of JAX takes over without a copy.

  Its memory is not numpy's, which asks for huge pages: where free memory is
  scattered, the kernel takes longer to put them together than all else takes.
  """
  size = math.prod(shape) * np.dtype(dtype).itemsize
  pages = mmap.mmap(-1, max(1, size), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  return np.frombuffer(pages, np.uint8, size).view(dtype).reshape(shape)


def store_tensor(tensor: safetensors_file.LazyTensor, view: np.ndarray) -> None:
  """Reads a tensor block by block into an array; see `store`."""
  touch_pages(view)
  for part, rows in split(tensor, view):
    store(part, rows, tensor)


def touch_pages(view: np.ndarray) -> None:
  """Makes the system provide new memory in order, at half the price.

  Rows that are turned into columns would ask for each page by itself, and wait.
  """
  order = np.argsort([-stride for stride in view.strides], kind='stable')
  memory = view.transpose(order)
  if memory.flags.c_contiguous:
    numbers = memory.reshape(-1).view(np.uint8)
    populate(numbers.ctypes.data, numbers.nbytes)
    numbers[::PAGE] = 0


def populate(address: int, size: int) -> None:
  """Asks Linux (since 5.14) for memory in one call instead of page by page.

  What other systems and the ends of a range lack comes with the first write.
  """
  begin = address + -address % mmap.PAGESIZE
  libc().madvise(
    ctypes.c_void_p(begin),
    ctypes.c_size_t(max(0, address + size - begin)),
    MADV_POPULATE_WRITE,
  )


@functools.cache
def libc() -> ctypes.CDLL:
  """Returns the C library of Python, whose calls let other threads go on."""
  return ctypes.CDLL(None)


def split(
  tensor: safetensors_file.LazyTensor, view: np.ndarray
) -> Iterator[Part]:
  """Splits a tensor, and the view that it fills, into blocks to be read."""
  if not tensor.has_rows or view.ndim == 0:
    yield tensor, view
    return
  for begin, end in blocks(tensor.shape, tensor.dtype.itemsize):
    yield tensor.rows(begin, end), view[begin:end]


def blocks(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[int, int]]:
  """Yields (begin, end) of rows that have BLOCK bytes or a little less."""
  rows = max(1, BLOCK // max(1, math.prod(shape[1:]) * itemsize))
  # Whole cache lines of the transposed rows are written at once.
  rows -= rows % LINE if rows > LINE else 0
  for begin in range(0, shape[0], rows):
    yield begin, min(begin + rows, shape[0])


def store(
  part: safetensors_file.LazyTensor,
  view: np.ndarray,
  whole: safetensors_file.LazyTensor | None = None,
) -> None:
  """Reads a tensor, or rows of it, into an array of another dtype.

  Args:
    part: to read.
    view: of an array, in the shape of the part.
    whole: tensor that the part is of, for errors.

  Raises:
    ValueError: if a number is not finite, or overflows in the array's dtype.
  """
  given = part.read()
  if view.ndim == 0:
    given, view = given.reshape(1), view.reshape(1)
  may_overflow = checked_cast.narrows(given.dtype, view.dtype)
  # What is read from its place in a file is checked.
  all_finite = part.has_rows or checked_cast.is_finite(given)
  for begin, end in blocks(given.shape, given.dtype.itemsize):
    block = given[begin:end]
    if may_overflow:  # to a shorter type, of which there is less to turn
      block = checked_cast.cast(block, view.dtype)
      if not checked_cast.is_finite(block):
        whole = whole or part
        raise ValueError(
          checked_cast.explain_not_finite(whole.name, whole.read(), view.dtype)
        )
    block, target = turn(block, view[begin:end])
    checked_cast.cast_into(block, target, all_finite)


def turn(array: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Turns an array and a view whose first axis is its innermost.

  A copy of one into the other then goes along the memory of both; numpy alone
  takes three times as long, in long strides through one of the two.

  Args:
    array: to be copied.
    view: to be filled.

  Returns:
    Array and view, their first axis moved to the end; or as they are.
  """
  is_turned = view.ndim > 1 and view.strides[0] == view.itemsize
  bits = BITS.get(array.itemsize)
  cpu = host_device()
  if not is_turned or array.size < SMALL or bits is None or cpu is None:
    return array, view
  rows = array.view(bits).reshape(len(array), -1)
  columns = np.asarray(jax.device_put(rows.T, cpu)).view(array.dtype)
  columns = columns.reshape(*array.shape[1:], len(array))
  return columns, np.moveaxis(view, 0, -1)


@functools.cache
def host_device() -> jax.Device | None:
  """Returns the CPU of JAX; None where JAX_PLATFORMS leaves it out."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return None


def put(
  array: np.ndarray, sharding: jax.sharding.Sharding | None
) -> np.ndarray | jax.Array:
  """Places an array, which is the same in every process, on its sharding."""
  if sharding is None:
    return array
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )
