"""Every bucket's program, compiled once, in threads beside the training."""

import concurrent.futures
import time

from sdxl_jax.training import task as tasks


class Programs:
  """The compiled programs of a task, ready or on their way.

  Args:
    task: state.Task.
    mesh: of all devices.
    state, frozen: trees of jax.ShapeDtypeStruct with shardings.
    buckets: (height, width) in the order in which the schedule needs them.
    threads: programs compiled at once.
    say: takes a line for the user.
  """

  def __init__(self, task, mesh, state, frozen, buckets, threads, say):
    self._pool = concurrent.futures.ThreadPoolExecutor(threads)
    self._say, self._total = say, len(buckets)
    submit = lambda name, make, *args: self._pool.submit(
      self._timed, name, make, *args
    )
    gradients = lambda bucket: submit(
      f'{bucket[0]}x{bucket[1]}',
      *(tasks.compile_gradients, task, mesh, state.params, frozen, bucket),
    )
    # The first step needs one bucket and the update; the others can wait.
    first, *others = buckets
    self._gradients = {first: gradients(first)}
    self._update = submit('the update', tasks.compile_update, task, mesh, state)
    if task.parts > 1:
      self._add = submit('the sum', tasks.compile_add, state.params)
    self._gradients |= {bucket: gradients(bucket) for bucket in others}

  def _timed(self, name, make, *args):
    start = time.monotonic()
    compiled = make(*args)
    done = sum(f.done() for f in self._gradients.values())
    seconds = time.monotonic() - start
    self._say(
      f'compiled {name} in {seconds:.0f} s; buckets ready: {done} of '
      f'{self._total}'
    )
    return compiled

  def gradients(self, bucket):
    """The program of a bucket, waited for if need be.

    Raises:
      ValueError: for a bucket that was not announced; nothing is compiled.
    """
    if bucket not in self._gradients:
      raise ValueError(
        f'a batch has the size {bucket}, for which nothing was compiled; the '
        f'buckets are {sorted(self._gradients)}'
      )
    return self._gradients[bucket].result()

  @property
  def add(self):
    return self._add.result()

  @property
  def update(self):
    return self._update.result()

  def close(self):
    """Gives up what is not yet begun."""
    self._pool.shutdown(wait=False, cancel_futures=True)
