"""Records a few steps of a run with JAX's profiler."""

from collections.abc import Callable
from typing import Any

import jax

# Steps of a start that go before: of the first, programs are still compiled.
BEFORE = 2
RECORDED = 3


class Recorder:
  """Records the steps after the first ones of a start.

  Args:
    folder: to write to; None: nothing is recorded.
    say: prints a line for the user.
  """

  def __init__(self, folder: str | None, say: Callable[[str], None]):
    self._folder, self._say = folder, say
    self._steps = 0
    self._is_on = False

  def before_step(self, state: Any) -> None:
    """Starts or stops before a step.

    Args:
      state: arrays that the step before computes; waited for, so that its work
        is recorded with it.
    """
    if self._folder is None:
      return
    if self._steps == BEFORE:
      jax.block_until_ready(state)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # the host's functions are many
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._is_on = True
    elif self._steps == BEFORE + RECORDED:
      self.close(state)
    self._steps += 1

  def close(self, state: Any) -> None:
    """Ends the recording; called at the end of a run too."""
    if self._is_on:
      jax.block_until_ready(state)
      jax.profiler.stop_trace()
      self._is_on = False
      self._say(
        f'recorded {self._steps - BEFORE} steps; to see where their time went: '
        f'python -m sdxl_jax.plan --from_trace {self._folder}'
      )
    elif self._folder is not None and self._steps <= BEFORE:
      self._say(
        f'warning: nothing is recorded, since this start took {self._steps} '
        f'steps and the first {BEFORE} are left out'
      )
