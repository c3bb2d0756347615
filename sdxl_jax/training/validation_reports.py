"""Writes the losses of validation among the metrics of a run."""

import functools
import pathlib
from collections.abc import Callable

import tqdm

from sdxl_jax.distributed import multihost
from sdxl_jax.ema import transform
from sdxl_jax.training import (
  metrics,
  metrics_writer,
  train_state,
  validation,
)

PREFIX = 'validation/'
# Of the EMA, and of the parameters as the last step left them.
PREFIXES = {'ema': PREFIX, 'last': f'{PREFIX}last_'}
NAME = f'{PREFIX}loss'  # which every report has


def write(
  measured: validation.Validation,
  state: train_state.State,
  done: int,
  reporter: metrics.Reporter,
  interrupted: Callable[[], bool],
) -> None:
  """Measures EMA and last parameters, and writes a line of metrics.

  Losses that are not finite are left out with a line: the run goes on, since
  its own losses decide whether it diverged.

  Args:
    measured: what to measure.
    state: of the run.
    done: optimizer steps done.
    reporter: of the metrics of the steps.
    interrupted: whether to give up; nothing is written then.
  """
  reporter.flush()
  writer = reporter.writer
  with reporter.aside():
    params = {
      'ema': transform.averaged(state.params, state.opt_state),
      'last': state.params,
    }
    bar = functools.partial(
      tqdm.tqdm,
      desc='validation',
      total=measured.batch_count,
      unit='batch',
      leave=False,
      # None: only on a terminal, where the bar of the steps is as well.
      disable=None if multihost.is_primary() else True,
    )
    losses = measured.measure(params, wrap=bar, interrupted=interrupted)
  if losses is None:
    return
  found = {
    f'{PREFIXES[name]}{key}': value
    for name, of_params in losses.items()
    for key, value in of_params.metrics(measured.by_bucket).items()
  }
  if NAME not in found:
    writer.say(f'warning: no validation after step {done}: no record was read')
  elif not metrics.is_finite(found):
    bad = [name for name in found if not metrics.is_finite({'': found[name]})]
    writer.say(
      f'warning: no validation after step {done}: {", ".join(bad[:3])} not '
      'finite'
    )
  else:
    writer.write_validation(done, found)
    writer.say(describe(done, found))


def write_if_missing(
  workdir: pathlib.Path,
  measured: validation.Validation,
  state: train_state.State,
  done: int,
  reporter: metrics.Reporter,
  interrupted: Callable[[], bool],
) -> None:
  """Writes what a start begins with, unless an earlier one has done so.

  A run that is stopped when validation is due leaves it to the next start. In a
  new run it is the loss before the first step.

  Args:
    workdir: of the run.
    measured, state, done, reporter, interrupted: as for `write`.
  """
  # The primary process alone has written, and decides for all.
  path = workdir / metrics_writer.FILE
  is_there = multihost.is_primary() and metrics_writer.has_line(
    path, done, NAME
  )
  if not multihost.from_primary('there' if is_there else ''):
    write(measured, state, done, reporter, interrupted)


def describe(done: int, found: dict[str, float]) -> str:
  """Returns the line for the user."""
  texts = []
  for name, prefix in PREFIXES.items():
    text = f'{name} {found[f"{prefix}loss"]:.4g}'
    if f'{prefix}gap' in found:
      text += f' ({found[f"{prefix}gap"]:+.4g} from trained records)'
    texts.append(text)
  return f'validation loss after step {done}: {", ".join(texts)}'
