"""Writes the metrics of a run: progress bar, JSON lines, trackers."""

import contextlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.training import board, progress, trackers, usual_range

FILE = 'metrics.jsonl'  # in the workdir


class Writer:
  """Writes metrics and images to the workdir, and lines to the screen.

  On resuming at `start_step` the lines of later steps, which a stopped run
  left behind, are removed from metrics.jsonl, so that no step is there twice.
  In a run of several processes only the primary one writes.

  Args:
    workdir: of the run.
    start_step: steps done before this start.
    total_steps: of the run.
    is_primary: whether this process writes.
    log_with: trackers, of trackers.NAMES.
    tracker: of those, the name of the project and the config of the run.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    start_step: int,
    total_steps: int,
    is_primary: bool = True,
    log_with: Sequence[str] = ('tensorboard',),
    tracker: tuple[str, dict[str, Any]] = ('', {}),
  ):
    folder = pathlib.Path(workdir)
    path = folder / FILE
    # Steps after the checkpoint are taken, and written, a second time.
    if is_primary:
      drop_lines_after(path, start_step)
    self._file = open(path if is_primary else os.devnull, 'a')
    self._progress = progress.Progress(start_step, total_steps, is_primary)
    self._boards, self._usual = [], None
    if is_primary:
      if 'tensorboard' in log_with:
        self._boards.append(board.Board(folder / 'tensorboard', start_step))
      self._boards += trackers.open_all(log_with, *tracker, folder, self.say)
      self._usual = usual_range.UsualRange(self.say, path)

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the metrics after `step` optimizer steps."""
    self._write_line(step, metrics)
    if self._usual:
      self._usual.follow(step, metrics)
    self._progress.show(metrics['loss'], metrics['images_per_s'])

  def write_validation(self, step: int, metrics: dict[str, float]) -> None:
    """Writes the losses of validation, in a line of their own."""
    self._write_line(step, metrics)

  def _write_line(self, step, metrics):
    # Six digits are more than a metric's noise, and keep the file small.
    line = {'step': step, **{k: float(f'{v:.6g}') for k, v in metrics.items()}}
    self._file.write(json.dumps(line) + '\n')
    self._file.flush()
    for writer in self._boards:
      writer.scalars(metrics, step)

  def image(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes an image, uint8 [h, w, 3], to the trackers."""
    for writer in self._boards:
      writer.image(name, image, step)

  def advance(self) -> None:
    """Advances the progress by one step."""
    self._progress.advance()

  def say(self, text: str) -> None:
    """Prints a line, above the progress bar if there is one."""
    self._progress.say(text)

  def close(self) -> None:
    self._progress.close()
    # A disk that is full here was full before, when `write` reported it.
    for file in (*self._boards, self._file):
      with contextlib.suppress(OSError):
        file.close()


def has_line(path: pathlib.Path, step: int, name: str) -> bool:
  """Whether metrics.jsonl has a line of a step with a metric of a name."""
  if not path.exists():
    return False
  with open(path) as file:
    return any(
      name in line and json.loads(line)['step'] == step for line in file
    )


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
