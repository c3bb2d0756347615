"""Train: config > mesh > task > data > restore > loop.

  python -m sdxl_jax.train --config configs/tiny.py --workdir DIR

To resume, run the same command again.
"""

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_dict, config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.data import images, pipeline
from sdxl_jax.distributed import device_mesh, multihost, sharding
from sdxl_jax.ema import snapshots, transform
from sdxl_jax.models import from_config
from sdxl_jax.training import (
  compilation,
  config_validation,
  config_warnings,
  latent_statistics,
  metrics,
  run_setup,
  sample_grid,
  tasks,
  train_state,
  workdirs,
)


def train(
  config: config_dict.ConfigDict,
  workdir: str | pathlib.Path,
  accept_changes: bool = False,
) -> int:
  """Trains as the config describes; everything is written to workdir.

  Args:
    config: as configs/default.py describes it.
    workdir: folder, the same one for all processes.
    accept_changes: whether the run may go on with a config that changes the
      order of its data or what it trains.

  Returns:
    Steps done: config.total_steps, or fewer if SIGTERM stopped the run.

  Raises:
    ValueError: on a config, data or checkpoint that does not fit, or on a loss
      that is not finite; checkpoints remain as they were.
  """
  config_validation.check(config)
  multihost.start(config.mesh.processes)
  vae_source = '' if 'vae' in config.from_scratch else config.init_from
  config = loading.with_latent_scaling(config, vae_source)

  # Open the workdir.
  workdir = workdirs.make(workdir)
  checkpoints = orbax_checkpoint.Checkpoints(
    workdir,
    config.checkpoint.max_to_keep,
    keep_every=config.checkpoint.keep_every,
  )
  done = checkpoints.latest_step or 0
  with contextlib.ExitStack() as stack:
    writer = metrics.Writer(
      workdir, done, config.total_steps, multihost.is_primary()
    )
    stack.callback(writer.close)
    writer.say(multihost.describe())
    run_setup.warn(config_warnings.of_config(config), writer.say)
    workdirs.write_config(config, workdir, done > 0, accept_changes, writer.say)
    workdirs.cache_compilations(workdir)

    # Prepare and train, until the last step or SIGTERM.
    notice = multihost.PreemptionNotice()
    stack.callback(notice.close)
    run, state = prepare(
      config, workdir, checkpoints, writer, stack, accept_changes
    )
    try:
      done = loop(run, state, done, checkpoints, writer, notice)
    except (ValueError, OSError):
      checkpoints.close()  # finishes what was being saved, which is good
      raise
    checkpoints.close()
    if done < config.total_steps:
      writer.say(f'stopped by SIGTERM after step {done}; checkpoint saved')
  return done


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
  programs: compilation.Programs
  sample_grid: sample_grid.SampleGrid
  checkpoint_config: latent_statistics.CheckpointConfig


def prepare(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  checkpoints: orbax_checkpoint.Checkpoints,
  writer: metrics.Writer,
  stack: contextlib.ExitStack,
  accept_changes: bool,
) -> tuple[Run, train_state.State]:
  """Makes the Run and its State, alike in all processes.

  Threads and files that a run holds open are closed by `stack`.
  """
  c = config.mesh
  mesh = device_mesh.make_mesh(c.data, c.fsdp, c.tensor)
  tasks.check_mesh(config, mesh)
  model = from_config.make_model(config, device_mesh.platform(mesh))
  task = tasks.make_task(config, model)

  # Open the data, and check that all processes have the same.
  source = run_setup.make_source(config, workdir, writer.say, accept_changes)

  def make_batches():
    rows = sharding.local_rows(mesh, tasks.micro_batch_size(config))
    return run_setup.make_batches(config, source, rows)

  batches = make_batches()
  stack.callback(batches.close)
  run_setup.warn_of_data(config, batches.schedule, writer.say)
  facts = tasks.run_fingerprint(config, batches.schedule)
  multihost.check_equal_across_hosts(facts)

  # Load weights directly into their shardings; start to compile the programs.
  key = jax.random.key(config.seed)
  pretrained = run_setup.load_weights(config, model, mesh)
  shapes = jax.eval_shape(task.init, key, pretrained)
  shapes = sharding.with_shardings(shapes, mesh)
  run_setup.warn(config_warnings.of_params(config, shapes.params), writer.say)
  frozen = {n: p for n, p in pretrained.items() if n not in shapes.params}
  buckets = batches.schedule.first_use()
  programs = compilation.Programs(
    task, mesh, shapes, frozen, buckets, config.compile_threads, writer.say
  )
  stack.callback(programs.close)

  # Restore or initialise the state while the programs compile.
  state = run_setup.initial_state(
    checkpoints, task, shapes, key, pretrained, batches
  )
  run = Run(
    config=config,
    workdir=workdir,
    mesh=mesh,
    task=task,
    frozen=frozen,
    key=key,
    batches=batches,
    programs=programs,
    sample_grid=sample_grid.make_sample_grid(config, model, frozen, source),
    checkpoint_config=latent_statistics.CheckpointConfig(
      config, model, task, mesh, make_batches, writer.say
    ),
  )
  return run, state


def loop(
  run: Run,
  state: train_state.State,
  done: int,
  checkpoints: orbax_checkpoint.Checkpoints,
  writer: metrics.Writer,
  notice: multihost.PreemptionNotice,
) -> int:
  """Trains from step `done` on; returns the number of steps done at the end."""
  config, total = run.config, run.config.total_steps
  reporter = metrics.Reporter(
    writer,
    every=config.log_every,
    batch_size=config.global_batch_size,
    learning_rate=tasks.make_learning_rate(config),
    batches=run.batches,
  )
  moved = tasks.make_movement(config, run.mesh, state.params, done, writer.say)
  moved.follow(done, state)
  stopping = False
  while done < total and not stopping:
    state = take_step(run, state, done, reporter)
    done += 1
    moved.follow(done, state)
    stopping = notice.requested(done)

    # Save checkpoints, also the last one before a stop.
    if (
      stopping
      or is_due(done, config.checkpoint.every, total)
      or is_due(done, config.checkpoint.keep_every, total)
    ):
      reporter.flush()  # a state is saved only once its loss is known
      position = run.batches.get_state()
      ema_params = transform.ema_params(state.opt_state)
      saved_config = run.checkpoint_config.make(ema_params)
      checkpoints.save(done, state, position, saved_config)
    if is_due(done, config.optimizer.ema_snapshots, total):
      reporter.flush()
      snapshots.save(
        run.workdir, done, state.opt_state, config.optimizer.ema_widths
      )

    # Show what the model generates so far.
    if is_due(done, config.samples.every, total) and not stopping:
      reporter.flush()
      write_samples(run, state, done, writer)
  reporter.close()
  return done


def take_step(
  run: Run,
  state: train_state.State,
  step: int,
  reporter: metrics.Reporter,
) -> train_state.State:
  """Takes one optimizer step: gradients of micro-batches, their sum, update."""
  gradients_sum, count = None, run.task.micro_batches
  for micro_step in range(step * count, (step + 1) * count):
    # The time until the batch is on the device counts as waiting for data.
    started = time.monotonic()
    bucket, batch = next(run.batches)
    batch = sharding.put_batch(batch, run.mesh, run.task.batch_spec(bucket))
    reporter.waited(time.monotonic() - started)

    # Programs run asynchronously: nothing here waits for their results.
    gradients, result = run.programs.gradients(bucket)(
      state.params, run.frozen, batch, run.key, np.int32(micro_step)
    )
    reporter.add_micro_batch(micro_step, bucket, result)
    if gradients_sum is None:
      gradients_sum = gradients
    else:
      gradients_sum = run.programs.add(gradients_sum, gradients)
  state, result = run.programs.update(state, gradients_sum)
  reporter.end_step(step, result)
  return state


def is_due(done: int, every: int, total: int) -> bool:
  """Whether something is due after `done` steps; never if `every` is 0."""
  return every > 0 and (done % every == 0 or done == total)


def write_samples(
  run: Run, state: train_state.State, done: int, writer: metrics.Writer
) -> None:
  """Writes the sample grid of the EMA parameters as a PNG, to TensorBoard."""
  grid = run.sample_grid.render(transform.ema_params(state.opt_state))
  if multihost.is_primary():
    images.save(run.workdir / 'samples' / f'{done:07d}.png', grid)
    writer.image('samples', grid, done)


def next_command(config: config_dict.ConfigDict, workdir: str) -> str:
  """Text that shows what to do with a finished run."""
  if config.task == 'autoencoder':
    return (
      'Finished. Next, measure the autoencoder with sdxl_jax.evaluate, or '
      'start stage 1 from it.'
    )
  c = config.samples
  prompt = c.prompts[0] if c.prompts else 'a fox'
  return (
    'Finished. Next, sample from it:\n'
    f'  python -m sdxl_jax.sample --weights {workdir} --prompt "{prompt}" '
    f'--steps {c.steps} --guidance_scale {c.guidance_scale} --output out.png'
  )


def main(args: flags.FlagValues) -> None:
  done = train(args.config, args.workdir, args.accept_changes)
  if done >= args.config.total_steps and multihost.is_primary():
    print(next_command(args.config, args.workdir))


def define_flags() -> None:
  flags.DEFINE_string(
    'workdir', None, 'folder that the run writes to and resumes from'
  )
  flags.DEFINE_bool(
    'accept_changes',
    False,
    'resume although the config changes the order of the data or what is '
    'trained',
  )
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.mark_flags_as_required(['config', 'workdir'])


if __name__ == '__main__':
  define_flags()
  cli.run(main)
