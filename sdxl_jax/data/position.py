"""The position in the data, as a checkpoint saves it: JSON.

  batches     batches of the schedule before it
  records     of each bucket's stream, taken before it
  passes      begun over the bucket with most of them
  batch_size  records per batch
  origin      where the schedule began, see buckets.Origin
  streams     hash of what decides the buckets' streams

A run with batches of the same size goes on with the same schedule. Where that
size is another, a new schedule begins at `records`, and where the records are
others, at the next pass: that is the origin of all later positions.
"""

from typing import Any

from sdxl_jax.data import buckets

Json = dict[str, Any]


def save(schedule: buckets.Schedule, batches: int) -> Json:
  """Returns the position after so many batches of the schedule."""
  taken = schedule.taken(batches)
  return {
    'batches': batches,
    'records': list(taken),
    'passes': schedule.passes(taken),
    'batch_size': schedule.global_batch_size,
    'origin': {
      'step': schedule.origin.step,
      'records': list(schedule.origin.records),
    },
    'streams': schedule.streams,
  }


def resume(
  schedule: buckets.Schedule, state: Json, batches: int, new_pass: bool
) -> buckets.Schedule:
  """Returns the schedule that goes on from a position.

  Args:
    schedule: of this start, for its streams and size of batches.
    state: of `save`, or {'batches': n} of an earlier version, whose batches
      were of the schedule's size unless it has 'batch_size'.
    batches: the number that the next batch has.
    new_pass: whether a new pass begins although the streams look alike.
  """
  # The schedule as it was.
  origin = buckets.Origin(0, (0,) * len(schedule.buckets))
  if 'origin' in state:
    saved = state['origin']
    origin = buckets.Origin(saved['step'], tuple(saved['records']))
  size = schedule.global_batch_size

  # Other records: all buckets begin a pass, whose order and crops are new.
  streams = state.get('streams', schedule.streams)
  if new_pass or streams != schedule.streams:
    passes = state.get('passes', 1)
    taken = tuple(passes * n for n in schedule.counts.tolist())
    return schedule.begin(buckets.Origin(batches, taken), size)

  # The same batches, or batches of another size from the same records on.
  saved_size = state.get('batch_size', size)
  before = schedule.begin(origin, saved_size)
  if (saved_size, state['batches']) == (size, batches):
    return before
  taken = tuple(state.get('records') or before.taken(state['batches']))
  return schedule.begin(buckets.Origin(batches, taken), size)
