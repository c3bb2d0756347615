"""Aspect-ratio buckets: the fixed table, assignment, and the global schedule.

The schedule chooses the bucket and the records of every global batch. It is a
pure function of (sizes, buckets, seed, global_batch_size, origin): hosts agree
without communication, resuming is a seek, and the number of hosts may change.
"""

import bisect
import copy
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdxl_jax.data import seeds

Size = tuple[int, int]  # (height, width) in px


def assign(
  sizes: np.ndarray, buckets: Sequence[Sequence[int]], chunk: int = 1 << 20
) -> np.ndarray:
  """Assigns each record to the bucket nearest in log aspect ratio.

  Args:
    sizes: int [n, 2], (height, width) of each record in px.
    buckets: sequence of (height, width), of different aspect ratios.
    chunk: rows converted to floats at a time, to bound memory.

  Returns:
    int16 [n], indices into `buckets`.

  Raises:
    ValueError: if there are no buckets, or two of one aspect ratio.
  """
  aspects = np.array([math.log(h / w) for h, w in buckets])
  order = np.argsort(aspects)
  if not len(order) or (np.diff(aspects[order]) < 1e-9).any():
    raise ValueError(
      f'buckets = {tuple(buckets)}: at least one is needed, and no two of one '
      'aspect ratio; remove the repetition'
    )
  # Between two middles of neighbouring aspects, one bucket is the nearest.
  middles = (aspects[order][1:] + aspects[order][:-1]) / 2
  nearest = np.empty(len(sizes), np.int16)
  for start in range(0, len(sizes), chunk):
    h, w = np.asarray(sizes[start : start + chunk], np.float64).T
    rank = np.searchsorted(middles, np.log(h / w))
    nearest[start : start + chunk] = order[rank]
  return nearest


def mix(x: np.ndarray) -> np.ndarray:
  """Applies the finaliser of splitmix64: uint64 [n] to mixed uint64 [n]."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def permute(
  index: np.ndarray, n: int, seed: Sequence[int], rounds: int = 6
) -> np.ndarray:
  """Computes where a random permutation of range(n) sends each index.

  A Feistel network on the grid a * b >= n, iterated until the result is below n
  (Black and Rogaway 2002, 'Ciphers with arbitrary finite domains'): no table,
  so a pass over 10^8 records costs neither memory nor time before its first
  batch.

  Args:
    index: int [m], each in range(n).
    n: size of the permutation.
    seed: entropy of np.random.SeedSequence.
    rounds: of the network.

  Returns:
    int64 [m].
  """
  a = math.isqrt(n - 1) + 1
  b = -(-n // a)
  keys = np.random.SeedSequence(seed).generate_state(2 * rounds, np.uint64)
  a, b, n = np.uint64(a), np.uint64(b), np.uint64(n)

  def encrypt(x):
    left, right = np.divmod(x, b)
    for left_key, right_key in keys.reshape(-1, 2):
      left = (left + mix(right ^ left_key) % a) % a
      right = (right + mix(left ^ right_key) % b) % b
    return left * b + right

  # Cycle walking: what lands outside of range(n) is encrypted once more.
  image = encrypt(np.asarray(index, np.uint64))
  while (outside := image >= n).any():
    image = np.where(outside, encrypt(image), image)
  return image.astype(np.int64)


class ScheduledBatch(NamedTuple):
  """The records of a batch, of all hosts."""

  bucket: Size
  ids: np.ndarray  # int64 [b], records
  passes: np.ndarray  # int64 [b], the pass over the bucket that each is in


class Origin(NamedTuple):
  """Where the batches of a schedule begin."""

  step: int  # the first one that is scheduled
  records: tuple[int, ...]  # of each bucket's stream, taken before


class Schedule:
  """Maps a step to its bucket and records, identically on every host.

  Each bucket is an endless stream: pass after pass over its records, every pass
  in a new random order. The k-th batch of a bucket is rows [k B, (k + 1) B) of
  its stream, so the remainder of one pass opens the batch that starts the next.
  Epoch e holds as many batches of each bucket as complete e + 1 passes over it,
  rounded down, in random order.

  A schedule begins with step 0 and the first record of each stream, or at
  another origin, where `begin` lets a run go on with batches of another size.

  Args:
    sizes: int [n, 2], (height, width) of each record in px.
    buckets: sequence of (height, width).
    seed: of every order.
    global_batch_size: records per step, over all hosts.

  Raises:
    ValueError: if there are no records, or fewer than one per step.
  """

  def __init__(
    self,
    sizes: np.ndarray,
    buckets: Sequence[Sequence[int]],
    seed: int,
    global_batch_size: int,
  ):
    if not len(sizes) or global_batch_size < 1:
      raise ValueError(
        f'{len(sizes)} records and global_batch_size = {global_batch_size}: '
        'both must be at least 1'
      )
    self.buckets = tuple((int(h), int(w)) for h, w in buckets)
    self.seed = seed
    self.global_batch_size = global_batch_size
    self.assigned = assign(sizes, self.buckets)
    self.counts = np.bincount(self.assigned, minlength=len(self.buckets))
    # Record ids, bucket by bucket.
    order = np.argsort(self.assigned, kind='stable')
    self.members = order.astype(np.min_scalar_type(len(order)))
    self.starts = np.cumsum(self.counts) - self.counts
    self._set_origin(Origin(0, (0,) * len(self.buckets)))

  def _set_origin(self, origin):
    self.origin = origin
    self._taken = np.array(origin.records, np.int64)
    self._order = functools.lru_cache(maxsize=2)(self._make_order)

  def begin(self, origin: Origin, global_batch_size: int) -> 'Schedule':
    """Returns a schedule of the same streams that begins elsewhere.

    Args:
      origin: whose step is the first.
      global_batch_size: records per step from there on.
    """
    schedule = copy.copy(self)
    schedule.global_batch_size = global_batch_size
    schedule._set_origin(origin)
    return schedule

  def taken(self, step: int) -> tuple[int, ...]:
    """Returns the records of each bucket's stream taken before a step."""
    epoch = self._epoch(step)
    bucket, _ = self._order(epoch)
    position = step - self.origin.step - self._steps_before(epoch)
    batches = self._batches_before(epoch)
    batches += np.bincount(bucket[:position], minlength=len(batches))
    return tuple((self._taken + batches * self.global_batch_size).tolist())

  def passes(self, taken: Sequence[int]) -> int:
    """Returns the passes begun over the bucket with most of them."""
    counts = np.maximum(self.counts, 1)
    return int((-(-np.array(taken, np.int64) // counts)).max())

  def __getitem__(self, step: int) -> tuple[Size, np.ndarray]:
    """Returns bucket (height, width) and record ids, int64 [batch]."""
    bucket, ids, _ = self.records(step)
    return bucket, ids

  def records(self, step: int) -> ScheduledBatch:
    """Returns the bucket, records and passes of a step."""
    b, k = self._batch(step)
    n = int(self.counts[b])
    rows = k * self.global_batch_size + np.arange(self.global_batch_size)
    rows += self._taken[b]
    passes, positions = np.divmod(rows, n)
    # A batch may span several passes over a rare bucket.
    for p in np.unique(passes):
      inside = passes == p
      key = [self.seed, seeds.Stream.RECORD_ORDER, b, int(p)]
      positions[inside] = permute(positions[inside], n, key)
    ids = self.members[self.starts[b] + positions].astype(np.int64)
    return ScheduledBatch(self.buckets[b], ids, passes)

  def next_in_bucket(self, record: int) -> int:
    """Returns the record that follows in the same bucket, cyclically."""
    b = self.assigned[record]
    first, n = self.starts[b], self.counts[b]
    position = np.searchsorted(self.members[first : first + n], record)
    return int(self.members[first + (position + 1) % n])

  def first_use(self) -> list[Size]:
    """Lists the buckets that hold records, in the order of their first step."""
    used = self.counts > 0
    records = self.global_batch_size + self._taken[used]
    first_epochs = -(-records // self.counts[used]) - 1
    indices = {}  # a dict keeps the order
    for epoch in np.unique(first_epochs).tolist():
      indices |= dict.fromkeys(self._order(epoch)[0].tolist())
    return [self.buckets[b] for b in indices]

  def fingerprint(self) -> str:
    """Hashes all that decides the schedule, to compare hosts."""
    text = repr((self.streams, self.global_batch_size, self.origin))
    return hashlib.sha256(text.encode()).hexdigest()

  @functools.cached_property
  def streams(self) -> str:
    """Hash of what decides the buckets' streams, not of the batch size."""
    text = repr((self.buckets, self.seed))
    return hashlib.sha256(text.encode() + self.assigned.tobytes()).hexdigest()

  def _batches_before(self, epoch):
    """Counts the batches of each bucket in the epochs before this one."""
    # Before the origin's epoch there are none.
    left = np.maximum(epoch * self.counts - self._taken, 0)
    return left // self.global_batch_size

  def _steps_before(self, epoch):
    """Counts the steps of the epochs before this one."""
    return int(self._batches_before(epoch).sum())

  def _epoch(self, step):
    """Finds the epoch that holds a step."""
    step -= self.origin.step
    if step < 0:
      raise ValueError(f'the schedule begins with step {self.origin.step}')
    # Rounding down loses under one batch of each bucket.
    batches = step + 1 + len(self.buckets)
    records = batches * self.global_batch_size + int(self._taken.sum())
    last = records // len(self.members) + 1
    return bisect.bisect_right(range(last), step, key=self._steps_before) - 1

  def _make_order(self, epoch):
    """Returns each step's bucket index, and the number of its batch there."""
    before = self._batches_before(epoch)
    batches = self._batches_before(epoch + 1) - before
    bucket = np.repeat(np.arange(len(batches), dtype=np.int16), batches)
    seed = [self.seed, seeds.Stream.BUCKET_ORDER, epoch]
    if self.origin.step:  # another order than the one it interrupts
      seed.append(self.origin.step)
    seed = np.random.SeedSequence(seed)
    bucket = np.random.Generator(np.random.Philox(seed)).permutation(bucket)
    # Number the batches of each bucket in the order of their steps.
    number = np.empty(len(bucket), np.int64)
    number[np.argsort(bucket, kind='stable')] = np.concatenate(
      [np.arange(start, start + n) for start, n in zip(before, batches)]
    )
    return bucket, number

  def _batch(self, step):
    """Returns a step's bucket index, and the number of its batch there."""
    epoch = self._epoch(step)
    bucket, number = self._order(epoch)
    position = step - self.origin.step - self._steps_before(epoch)
    return int(bucket[position]), int(number[position])
