"""The loop of a run: steps, checkpoints, snapshots and samples."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.data import images, pipeline
from sdxl_jax.distributed import multihost, stop_notice
from sdxl_jax.ema import snapshots, transform
from sdxl_jax.sampling import finiteness
from sdxl_jax.training import (
  background,
  compilation,
  ema_distance,
  latent_statistics,
  metrics,
  metrics_writer,
  placing,
  sample_grid,
  step_profile,
  tasks,
  train_state,
  validation,
  validation_reports,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What stays the same from step to step."""

  config: config_dict.ConfigDict
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  task: train_state.Task
  frozen: dict[str, Any]  # {net: parameters} of the nets that are not trained
  key: jax.Array
  batches: pipeline.Batches
  dataset: dict[str, Any]  # what checkpoints say of the data
  programs: compilation.Programs
  sample_grid: sample_grid.SampleGrid
  checkpoint_config: latent_statistics.CheckpointConfig
  check_workdir: Callable[[], None]  # raises OSError if it may not be written
  validator: validation.Validation | None = None  # None: nothing is held out


def loop(
  run: Run,
  state: train_state.State,
  done: int,
  checkpoints: orbax_checkpoint.Checkpoints,
  writer: metrics_writer.Writer,
  notice: stop_notice.PreemptionNotice,
  recorder: step_profile.Recorder,
) -> int:
  """Trains from step `done` on; returns the number of steps done at the end."""
  config, total = run.config, run.config.total_steps
  rates = tasks.LearningRates(config, done)
  reporter = metrics.Reporter(
    writer,
    every=config.log_every,
    batch_size=config.global_batch_size,
    learning_rate=rates.at,
    batches=run.batches,
    skip_non_finite=config.skip_non_finite,
  )
  moved = tasks.make_movement(
    config, run.mesh, state.params, rates.values, done, writer.say
  )
  moved.follow(done, state)
  every, keep = config.checkpoint.every, config.checkpoint.keep_every
  stopping, saved = False, done
  with opened(run, done) as (batches, aside):
    if is_validation_due(run, done):
      validation_reports.write_if_missing(
        run.workdir, run.validator, state, done, reporter, notice.interrupts
      )
    while done < total and not stopping:
      run.check_workdir()
      aside.check()
      recorder.before_step(state)
      try:
        state = take_step(
          run, state, done, batches, reporter, notice.interrupts
        )
      except compilation.Interrupted:  # the gradients of the step are dropped
        if done > saved:
          save(run, state, done, checkpoints, reporter)
        break
      done += 1
      notice.save_first()
      if moved.is_due(done):
        reporter.flush()  # a loss that is not finite is named first
      moved.follow(done, state)
      stopping = notice.requested(done)

      # Save checkpoints, also the last one before a stop.
      due = is_due(done, every, total) or is_due(done, keep, total)
      if stopping or due:
        save(run, state, done, checkpoints, reporter)
        saved = done
      if is_due(done, config.optimizer.ema_snapshots, total):
        save_snapshots(run, state, done, reporter, aside)

      # Measure, and show, what the model can do so far.
      if is_validation_due(run, done) and not stopping:
        validation_reports.write(
          run.validator, state, done, reporter, notice.interrupts
        )
      if is_due(done, config.samples.every, total) and not stopping:
        write_samples(run, state, done, reporter, aside)
    recorder.close(state)
    reporter.close()
  return done


@contextlib.contextmanager
def opened(
  run: Run, done: int
) -> Iterator[tuple[placing.PlacedBatches, background.Background]]:
  """Opens the threads of a loop that goes on after `done` steps.

  Yields:
    (batches on the devices, work that steps need not wait for).
  """
  count = (run.config.total_steps - done) * run.task.micro_batches
  batches = placing.PlacedBatches(
    run.batches, run.mesh, run.task.batch_spec, count
  )
  aside = background.Background()
  # A step's own error precedes that of what was still written.
  with contextlib.closing(batches):
    try:
      yield batches, aside
    except BaseException:
      with contextlib.suppress(Exception):
        aside.close()
      raise
    aside.close()


def take_step(
  run: Run,
  state: train_state.State,
  step: int,
  batches: placing.PlacedBatches,
  reporter: metrics.Reporter,
  interrupted: Callable[[], bool],
) -> train_state.State:
  """Takes one optimizer step: gradients of micro-batches, their sum, update.

  Args:
    run: what stays the same.
    state: is donated to the update.
    step: its number, from 0.
    batches: on the devices.
    reporter: of the metrics.
    interrupted: whether to give up while a program compiles.

  Raises:
    compilation.Interrupted: if so; the state is as it was.
  """
  gradients_sum, count, measured = None, run.task.micro_batches, []
  for micro_step in range(step * count, (step + 1) * count):
    # The time until the batch is on the device counts as waiting for data.
    started = time.monotonic()
    bucket, batch = next(batches)
    reporter.waited(time.monotonic() - started)

    # Programs run asynchronously: nothing here waits for their results.
    gradients, result = run.programs.gradients(bucket, interrupted)(
      state.params,
      run.frozen,
      batch | state.shared,
      run.key,
      np.int32(micro_step),
      *state.scale,
    )
    if state.shared:
      measured.append(result.pop('measured'))
    reporter.add_micro_batch(micro_step, bucket, result)
    if gradients_sum is None:
      gradients_sum = gradients
    else:
      gradients_sum = run.programs.add(interrupted)(gradients_sum, gradients)
  state, result = run.programs.update(interrupted)(state, gradients_sum)
  result |= ema_distance.of_line(state, step, run.config.log_every)
  reporter.end_step(step, result)
  if state.shared:
    observe = compilation.observer(state.loss_history.sharding)
    state = state.replace(loss_history=observe(state.loss_history, measured))
  return state


def save(
  run: Run,
  state: train_state.State,
  done: int,
  checkpoints: orbax_checkpoint.Checkpoints,
  reporter: metrics.Reporter,
) -> None:
  """Saves a checkpoint: State, position in the data, dataset and config."""
  reporter.flush()  # a state is saved only once its loss is known
  with reporter.aside():
    # By the steps: one that was given up may have taken some batches.
    position = run.batches.get_state(done * run.config.buckets_per_step)
    averaged = transform.averaged(state.params, state.opt_state)
    saved_config = run.checkpoint_config.make(averaged)
    data = position | {'dataset': run.dataset}
    checkpoints.save(done, state, data, saved_config)


def save_snapshots(
  run: Run,
  state: train_state.State,
  done: int,
  reporter: metrics.Reporter,
  aside: background.Background,
) -> None:
  """Saves copies of the averages, which a thread then writes.

  Raises:
    OSError: if they cannot be written; from the thread, a later step does.
  """
  widths = run.config.optimizer.ema_widths

  def explain(action, *args):
    try:
      return action(*args)
    except Exception as error:  # orbax raises many types when the disk is full
      text = ' '.join(str(error).split())[:500]
      raise OSError(
        f'the EMA of step {done} cannot be copied: {text}'
      ) from error

  reporter.flush()
  with reporter.aside():
    finish = explain(snapshots.save, run.workdir, done, state.opt_state, widths)
  aside.run(explain, finish)


def is_validation_due(run: Run, done: int) -> bool:
  """Whether there is validation after so many steps."""
  c = run.config
  return run.validator is not None and is_due(
    done, c.validation.every, c.total_steps
  )


def is_due(done: int, every: int, total: int) -> bool:
  """Whether something is due after `done` steps; never if `every` is 0."""
  return every > 0 and (done % every == 0 or done == total)


def write_samples(
  run: Run,
  state: train_state.State,
  done: int,
  reporter: metrics.Reporter,
  aside: background.Background,
) -> None:
  """Samples a grid from the EMA parameters, which a thread then writes.

  Samples that are not finite are left out with a line: the run goes on, since
  its own losses decide whether it diverged.
  """
  reporter.flush()
  with reporter.aside():
    try:
      averaged = transform.averaged(state.params, state.opt_state)
      grid = run.sample_grid.render(averaged)
    except finiteness.NonFiniteError as error:
      reporter.writer.say(f'warning: no samples of step {done}: {error}')
      return
  if multihost.is_primary():
    path = run.workdir / 'samples' / f'{done:07d}.png'
    aside.run(write_grid, path, reporter.writer, grid, done)


def write_grid(
  path: pathlib.Path,
  writer: metrics_writer.Writer,
  grid: sample_grid.Grid,
  done: int,
) -> None:
  """Writes a grid as a PNG, and to TensorBoard."""
  images.save(path, grid)
  writer.image('samples', grid, done)
