"""Reports the metrics of a run, one step late, to a metrics_writer.Writer.

A line holds means over the steps since the line before it.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdxl_jax.data import pipeline
from sdxl_jax.training import loss_scaling, metrics_writer

MAX_NAMES = 100  # of records, in an error
# Metrics of a step that a line holds as they are after its last step.
LATEST = {'skipped': int, 'loss_scale': float, 'ema_distance': float}


class NonFiniteLoss(ValueError):
  """The loss or its gradient became infinite or NaN."""


def is_finite(metrics: dict[str, float | np.ndarray | np.generic]) -> bool:
  """Whether all metrics are."""
  return all(map(math.isfinite, metrics.values()))


def check_finite(
  metrics: dict[str, float | np.ndarray | np.generic],
  step: int,
  bucket: Any,
  names: Sequence[str],
  is_scaled: bool = False,
) -> None:
  """Raises NonFiniteLoss, naming the step, its bucket and its records.

  Args:
    metrics: {name: value} of the step, or of one of its micro-batches.
    step: its number.
    bucket: (height, width), or several of them.
    names: of the records.
    is_scaled: whether a net computes in float16.
  """
  bad = {k: float(v) for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    more = len(names) - MAX_NAMES
    shown = [*map(str, names[:MAX_NAMES]), *([f'{more} more'] * (more > 0))]
    listed = ''.join(f'\n  {name}' for name in shown)
    wider = (
      ', compute in a type of wider range than float16 (config.unet.dtype)'
    )
    raise NonFiniteLoss(
      f'step {step} gave {bad}. Bucket (height, width): {bucket}; records:'
      f'{listed}\nLook at these records, lower the learning rate or the '
      f'clip_norm{wider if is_scaled else ""}, or leave out such steps '
      '(config.skip_non_finite); the last checkpoint is intact'
    )


class Reporter:
  """Fetches metrics one step late, so that the device never waits for the host.

  Args:
    writer: of the run.
    every: steps between two lines of metrics.
    batch_size: images in an optimizer step.
    learning_rate: step -> learning rate, on the host.
    batches: source of the records' names and counts.
    skip_non_finite: steps in a row that may be not finite; the task skips them.
      Those whose gradients overflow at a loss scale do not count.
  """

  def __init__(
    self,
    writer: metrics_writer.Writer,
    *,
    every: int,
    batch_size: int,
    learning_rate: Callable[[int], Any],
    batches: pipeline.Batches,
    skip_non_finite: int = 0,
  ):
    self.skip_non_finite = skip_non_finite
    self._skipped, self._latest = 0, {}  # in a row; see LATEST
    self.writer, self.every, self.batch_size = writer, every, batch_size
    self.learning_rate, self.batches = learning_rate, batches
    self._pending, self._micro_batches = None, []
    self._last_step = None  # the last one that was reported
    self._restart()

  def _restart(self):
    self._started, self._taken = time.monotonic(), 0
    # s for data, for the device, for checkpoints and samples
    self._waited, self._computed, self._aside = 0.0, 0.0, 0.0
    self._sums, self._steps = {}, 0  # of the steps that were not skipped

  def waited(self, seconds: float) -> None:
    """Counts the time that a step waited for its data."""
    self._waited += seconds

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """Counts the time of the context as that of checkpoints and samples."""
    started = time.monotonic()
    yield
    self._aside += time.monotonic() - started

  def add_micro_batch(
    self,
    micro_step: int,
    bucket: tuple[int, int],
    metrics: dict[str, jax.Array],
  ) -> None:
    """Keeps the metrics of a micro-batch, on the device for now."""
    self._micro_batches.append((micro_step, bucket, metrics))

  def end_step(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Keeps the metrics of an update, and reports those of the step before."""
    # The device is computing this step; the one before is complete.
    self.flush()
    self._pending = step, self._micro_batches, metrics
    self._micro_batches = []

  def flush(self) -> None:
    """Reports the latest metrics now.

    Raises:
      NonFiniteLoss: naming the step, its bucket and its records.
    """
    if self._pending is None:
      return
    step, micro_batches, metrics = self._pending
    self._pending = None
    started = time.monotonic()
    micro_batches, metrics = jax.device_get((micro_batches, metrics))
    self._computed += time.monotonic() - started

    # Of the last step: a count and a state have no mean.
    latest = {
      name: kind(metrics.pop(name))
      for name, kind in LATEST.items()
      if name in metrics
    }
    self._latest |= latest
    scale = latest.get('loss_scale')
    if not self._is_skipped(step, micro_batches, metrics, scale):
      self._add(micro_batches, metrics)
    self._taken, self._last_step = self._taken + 1, step
    self.writer.advance()
    if (step + 1) % self.every == 0:
      self._write_line()

  def _add(self, micro_batches, metrics):
    """Adds the metrics of a step to the sums of the next line."""
    # Micro-batches have equally many images, and so have steps: means of means
    # are those over all images since the last line.
    results = [result for _, _, result in micro_batches]
    means = jax.tree.map(lambda *values: sum(values) / len(values), *results)
    for name, value in (means | metrics).items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._steps += 1

  def close(self) -> None:
    """Reports the latest metrics, and writes the line of the last steps."""
    self.flush()
    self._write_line()

  def _write_line(self):
    """Writes the means since the last line, with rates and counts."""
    if self._steps:  # else nothing, or all were skipped
      means = {name: total / self._steps for name, total in self._sums.items()}
      rates = self._rates(self._last_step)
      self.writer.write(self._last_step + 1, means | self._latest | rates)

  def _is_skipped(self, step, micro_batches, metrics, scale):
    """Whether the task has skipped a step, as it may so many in a row."""
    # Overflow is no fault of the records, and the next step mends it.
    has_loss = all(is_finite(result) for _, _, result in micro_batches)
    if has_loss and loss_scaling.can_fall(scale) and not is_finite(metrics):
      self.writer.say(
        f'step {step} left out: its gradients overflow at the loss scale '
        f'{scale:g}; the next has {scale / loss_scaling.FACTOR:g}'
      )
      return True
    try:
      self._check(step, micro_batches, metrics, scale is not None)
    except NonFiniteLoss as error:
      self._skipped += 1
      if self._skipped > self.skip_non_finite:
        raise
      self.writer.say(
        f'skipped, {self._skipped} in a row of at most {self.skip_non_finite}: '
        f'{error}'
      )
      return True
    self._skipped = 0
    return False

  def _check(self, step, micro_batches, metrics, is_scaled):
    """Checks each micro-batch, then the whole step."""
    # Names take time, and are made only if they are needed.
    for micro_step, bucket, result in micro_batches:
      if not is_finite(result):
        names = self.batches.record_names(micro_step)
        check_finite(result, step, bucket, names, is_scaled)
    if not is_finite(metrics):
      buckets = [bucket for _, bucket, _ in micro_batches]
      names = [
        name
        for micro_step, _, _ in micro_batches
        for name in self.batches.record_names(micro_step)
      ]
      check_finite(metrics, step, buckets, names, is_scaled)

  def _rates(self, step):
    """Returns speed, learning rate and counts of the data."""
    # Speed since the last line; then the next interval begins.
    elapsed = time.monotonic() - self._started
    steps, waited, aside = self._taken, self._waited, self._aside
    host = elapsed - waited - aside - self._computed
    self._restart()
    return {
      'learning_rate': float(self.learning_rate(step)),
      'images_per_s': steps * self.batch_size / elapsed,
      'step_s': elapsed / steps,
      'data_wait_s': waited / steps,
      # What is left is the host's own time: the device idles only if it is
      # about as long as the step.
      'host_s': host / steps,
      'aside_s': aside / steps,
      **self.batches.counts(),
    }
