"""Writes the metrics of a run: progress bar, JSON lines, TensorBoard."""

import contextlib
import json
import os
import pathlib

import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.training import board, progress


class Writer:
  """Writes metrics and images to the workdir, and lines to the screen.

  On resuming at `start_step` the lines of later steps, which a stopped run
  left behind, are removed from metrics.jsonl, so that no step is there twice.
  In a run of several processes only the primary one writes.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    start_step: int,
    total_steps: int,
    is_primary: bool = True,
  ):
    folder = pathlib.Path(workdir)
    path = folder / 'metrics.jsonl'
    # Steps after the checkpoint are taken, and written, a second time.
    if is_primary:
      drop_lines_after(path, start_step)
    self._file = open(path if is_primary else os.devnull, 'a')
    self._board = None
    if is_primary:
      self._board = board.Board(folder / 'tensorboard', start_step)
    self._progress = progress.Progress(start_step, total_steps, is_primary)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics after `step` optimizer steps."""
    # Six digits are more than a metric's noise, and keep the file small.
    line = {'step': step, **{k: float(f'{v:.6g}') for k, v in metrics.items()}}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    if self._board:
      self._board.scalars(metrics, step)
    self._progress.show(metrics['loss'], metrics['images_per_s'])

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes an image, uint8 [h, w, 3], to TensorBoard."""
    if self._board:
      self._board.image(name, image, step)

  def advance(self) -> None:
    """Advances the progress by one step."""
    self._progress.advance()

  def say(self, text: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    self._progress.say(text)

  def close(self) -> None:
    self._progress.close()
    # A disk that is full here was full before, when `write` reported it.
    for file in filter(None, (self._board, self._file)):
      with contextlib.suppress(OSError):
        file.close()


def drop_lines_after(path: pathlib.Path, step: int) -> None:
  """Removes the JSON lines after `step`, and a line that a crash cut short."""
  if not path.exists():
    return
  lines = []
  for line in path.read_text().splitlines(keepends=True):
    try:
      if json.loads(line)['step'] <= step:
        lines.append(line)
    # A line without an end: the process was killed while it wrote.
    except json.JSONDecodeError:
      continue

  # Atomically, so that a crash here loses no metrics.
  atomic_write.write_text(path, ''.join(lines))
