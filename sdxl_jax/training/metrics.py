"""Where a run's numbers go: progress bar, JSON lines, TensorBoard."""

import json
import math
import os
import pathlib
import time

import jax
import tensorboardX
import tqdm

from sdxl_jax.training import workdirs


class NonFiniteLoss(ValueError):
  """The loss or its gradient became infinite or NaN."""


def check_finite(metrics, step, bucket, record_ids):
  """Raises NonFiniteLoss naming what the step was made of."""
  bad = {k: v for k, v in metrics.items() if not math.isfinite(v)}
  if bad:
    raise NonFiniteLoss(
      f'step {step} gave {bad}. Bucket (height, width): {bucket}; record ids: '
      f'{list(map(int, record_ids))}. Look at these records, lower the '
      'learning rate or the clip_norm; the last checkpoint is intact'
    )


class Writer:
  """Writes metrics of each `every`-th step to the workdir and the screen.

  On resuming at `start_step` the lines of later steps, which a stopped run
  left behind, are taken out: a step stands in the file once. Of many processes
  one is the `speaker`; the others write nothing.
  """

  def __init__(self, workdir, start_step, total_steps, speaker=True):
    folder = pathlib.Path(workdir)
    path = folder / 'metrics.jsonl'
    if speaker:
      keep_until(path, start_step)
    self._file = open(path if speaker else os.devnull, 'a')
    self._board = tensorboardX.SummaryWriter(
      str(folder / 'tensorboard'),
      purge_step=start_step,
      write_to_disk=speaker,
    )
    self._bar = tqdm.tqdm(
      initial=start_step,
      total=total_steps,
      unit='step',
      smoothing=0.05,
      disable=not speaker,
    )

  def write(self, step, metrics):
    """Metrics (floats by name) after `step` optimizer steps."""
    line = {'step': step, **{k: float(f'{v:.6g}') for k, v in metrics.items()}}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      self._board.add_scalar(name, value, step)
    self._bar.set_postfix(
      loss=f'{metrics["loss"]:.4f}', img_s=f'{metrics["images_per_s"]:.0f}'
    )

  def image(self, name, image, step):
    """A picture uint8 [h, w, 3] for TensorBoard."""
    self._board.add_image(name, image, step, dataformats='HWC')

  def advance(self):
    self._bar.update()

  def say(self, text):
    """A line above the progress bar."""
    if not self._bar.disable:
      self._bar.write(text)

  def close(self):
    self._bar.close()
    self._board.close()
    self._file.close()


def keep_until(path, step):
  """Drops the JSON lines after `step`, and one that a crash cut short."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines(keepends=True):
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line)
    except json.JSONDecodeError:
      continue
  workdirs.replace(path, ''.join(kept))


class Reporter:
  """Looks at each step's metrics one step late, so that no step waits."""

  def __init__(self, writer, *, every, batch_size, learning_rate, batches):
    self.writer, self.every, self.batch_size = writer, every, batch_size
    self.learning_rate, self.batches = learning_rate, batches
    self._pending, self._parts = None, []
    self._restart()

  def _restart(self):
    self._started, self._waited, self._steps = time.monotonic(), 0.0, 0

  def waited(self, seconds):
    """Counts the time that a step waited for its data."""
    self._waited += seconds

  def add_part(self, part, bucket, metrics):
    """Takes the metrics of a micro-batch, on the device still."""
    self._parts.append((part, bucket, metrics))

  def end_step(self, step, metrics):
    """Takes those of the update, and looks at the step before."""
    self.flush()
    self._pending = step, self._parts, metrics
    self._parts = []

  def flush(self):
    """Looks at the latest metrics now.

    Raises:
      NonFiniteLoss: naming the step, its bucket and its records.
    """
    if self._pending is None:
      return
    (step, parts, metrics), self._pending = self._pending, None
    parts, metrics = jax.device_get((parts, metrics))
    for part, bucket, result in parts:
      check_finite(result, step, bucket, self.batches.record_ids(part))
    ids = [i for part, *_ in parts for i in self.batches.record_ids(part)]
    check_finite(metrics, step, [bucket for _, bucket, _ in parts], ids)
    results = [result for *_, result in parts]
    means = jax.tree.map(lambda *values: sum(values) / len(values), *results)
    metrics = {k: float(v) for k, v in (means | metrics).items()}
    self._steps += 1
    self.writer.advance()
    if (step + 1) % self.every == 0:
      self.writer.write(step + 1, metrics | self._rates(step))

  def _rates(self, step):
    elapsed, steps, waited = (
      time.monotonic() - self._started,
      self._steps,
      self._waited,
    )
    self._restart()
    return {
      'learning_rate': float(self.learning_rate(step)),
      'images_per_s': steps * self.batch_size / elapsed,
      'step_s': elapsed / steps,
      'data_wait_s': waited / steps,
      **self.batches.counts(),
    }
