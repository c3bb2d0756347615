"""Sets a workdir back to an earlier checkpoint, and keeps what came later."""

import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from sdxl_jax.checkpoints import orbax_checkpoint, write_errors
from sdxl_jax.distributed import multihost
from sdxl_jax.ema import snapshots

FOLDER = 'set_aside'
METRICS = 'metrics.jsonl'


def set_back(
  workdir: pathlib.Path, step: int, say: Callable[[str], Any]
) -> None:
  """Sets a workdir back to a step, once: a restart of the command goes on.

  Later checkpoints and snapshots are moved to WORKDIR/set_aside/from_step_STEP,
  with a copy of the metrics, which the run is about to shorten.

  Args:
    workdir: of the run, locked.
    step: of a complete checkpoint.
    say: prints a line for the user.

  Raises:
    ValueError: in all processes, if there is no such checkpoint.
  """
  multihost.on_primary(lambda: move_later(workdir, step, say))


def move_later(
  workdir: pathlib.Path, step: int, say: Callable[[str], Any]
) -> None:
  """Moves what is later than a step; see `set_back`."""
  folder = workdir / orbax_checkpoint.FOLDER
  steps = write_errors.complete_steps(folder)
  aside = workdir / FOLDER / f'from_step_{step}'
  # A scheduler starts the same command again, which must not go back again.
  if aside.exists():
    say(
      f'{workdir} was set back to step {step} before, so the run goes on from '
      f'step {steps[-1] if steps else 0}; to set it back once more, rename '
      f'{aside}'
    )
    return
  if step not in steps:
    raise ValueError(
      f'--from_step={step}: {workdir} has checkpoints of the steps {steps} only'
    )
  orbax_checkpoint.read_config(folder / str(step))  # raises if it is damaged

  # The latest first, so that a run that is killed here is at some step of them.
  partial = aside.with_suffix('.partial')
  partial.mkdir(parents=True, exist_ok=True)
  if (workdir / METRICS).exists() and not (partial / METRICS).exists():
    shutil.copy2(workdir / METRICS, partial / METRICS)
  later = [n for n in steps if n > step]
  for n in reversed(later):
    os.rename(folder / str(n), partial / str(n))
  for path in (workdir / snapshots.FOLDER).glob('[0-9]*'):
    if int(path.name) > step:
      os.rename(path, partial / f'{snapshots.FOLDER}-{path.name}')
  os.rename(partial, aside)
  moved = (
    f'those of {later} and the metrics were moved'
    if later
    else ('it is the latest; the metrics were copied')
  )
  say(
    f'resuming from the checkpoint of step {step}: {moved} to {aside}, which '
    'may be removed'
  )
