"""The progress of a run: a bar on a terminal, lines where there is none."""

import collections
import os
import sys
import time

import tqdm

RECENT = 200  # steps whose speed tells the time that is left


class Progress:
  """Prints the progress of a run and the time that it will still take.

  Args:
    start_step: steps done before this start.
    total_steps: of the run.
    is_primary: whether this process prints at all.
    has_terminal: whether there is a bar; default: if stderr is a terminal.
  """

  def __init__(
    self,
    start_step: int,
    total_steps: int,
    is_primary: bool = True,
    has_terminal: bool | None = None,
  ):
    if has_terminal is None:
      has_terminal = sys.stderr.isatty()
    self.done, self.total, self.is_primary = start_step, total_steps, is_primary
    # The first steps wait for programs to compile: they fall out of the recent.
    self._ends = collections.deque(maxlen=RECENT + 1)
    self._figures = ''
    self._bar = None
    if is_primary and has_terminal:
      self._bar = tqdm.tqdm(
        initial=start_step,
        total=total_steps,
        unit='step',
        bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]',
      )

  def advance(self, now: float | None = None) -> None:
    """Counts a step that has ended, by default now, in s of any clock."""
    self._ends.append(time.monotonic() if now is None else now)
    self.done += 1
    if self._bar is not None:
      self._bar.set_postfix_str(self._status(), refresh=False)
      self._bar.update()

  def show(self, loss: float, images_per_s: float) -> None:
    """Shows the figures of a line of metrics, with the time that is left."""
    self._figures = f'loss {loss:.4f}, {images_per_s:.3g} images/s'
    if self._bar is not None:
      self._bar.set_postfix_str(self._status())
    else:
      self.say(f'step {self.done:,} of {self.total:,}: {self._status()}')

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    try:
      if self._bar is not None:
        self._bar.write(text)
      elif self.is_primary:
        print(text, flush=True)
    # A command that read the output, such as tee, has ended, by Ctrl-C perhaps.
    # The run goes on, if only to save: the workdir has its metrics.
    except BrokenPipeError:
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, sys.stdout.fileno())
      os.close(nowhere)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()

  def seconds_left(self) -> float | None:
    """Estimates the time to the end from recent steps; None without any.

    What is done between steps, such as samples and checkpoints, counts too.
    """
    if len(self._ends) < 2:
      return None
    per_step = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
    return per_step * (self.total - self.done)

  def _status(self):
    left = self.seconds_left()
    parts = [self._figures, f'{duration(left)} left' if left else '']
    return ', '.join(filter(None, parts))


def duration(seconds: float) -> str:
  """Formats a time by its two largest units, such as '2 h 05 min'."""
  minutes, s = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  days, hours = divmod(hours, 24)
  if days:
    return f'{days} d {hours:02} h'
  if hours:
    return f'{hours} h {minutes:02} min'
  return f'{minutes} min {s:02} s' if minutes else f'{s} s'
