"""Train: config > mesh > task > data > restore > loop.

  python -m sdxl_jax.train --config configs/tiny.py --workdir DIR

To resume, run the same command again.
"""

import contextlib
import pathlib

import jax
from absl import flags
from ml_collections import config_dict, config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import run_sources, source_configs
from sdxl_jax.diffusion import random_keys
from sdxl_jax.distributed import (
  device_mesh,
  multihost,
  sharding,
  stop_notice,
)
from sdxl_jax.models import from_config
from sdxl_jax.training import (
  compilation,
  config_validation,
  latent_statistics,
  loop,
  loss_scaling,
  optimizer_warnings,
  resuming,
  run_data,
  run_setup,
  run_start,
  sample_grid,
  start_warnings,
  step_profile,
  tasks,
  train_state,
  validation,
)

# What to do where the memory of a device is exhausted.
MEMORY = (
  'set a smaller config.global_batch_size, a larger config.accumulation_steps, '
  "remat 'full' of the nets that are trained (config.unet.remat), or "
  'config.mesh.fsdp over more devices; sdxl_jax.plan computes what a step '
  'needs. Checkpoints are intact: run the command again to go on'
)


def train(
  config: config_dict.ConfigDict,
  workdir: str | pathlib.Path,
  accept_changes: bool = False,
  from_step: int | None = None,
  record_profile: str | None = None,
) -> int:
  """Trains as the config describes; everything is written to workdir.

  Args:
    config: as configs/default.py describes it.
    workdir: folder, the same one for all processes.
    accept_changes: whether the run may go on with a config or a dataset that
      changes the order of its data or what it trains.
    from_step: of an earlier checkpoint to resume from; None: the latest.
    record_profile: folder for the profile of a few steps; None: none.

  Returns:
    Steps done: config.total_steps, or fewer if SIGTERM stopped the run.

  Raises:
    ValueError: on a config, data or checkpoint that does not fit, on a loss
      that is not finite, or if another run holds the workdir.
    OSError: if the workdir can no longer be written; checkpoints remain as they
      were.
    stop_notice.Interrupted: if Ctrl-C stopped the run, which is saved.
  """
  config_validation.check(config)
  multihost.start(config.mesh.processes)
  vae_source = run_sources.vae_source(config)
  config = source_configs.with_latent_scaling(config, vae_source)

  with contextlib.ExitStack() as stack:
    # Until the first step a signal ends this process at once.
    notice = stop_notice.PreemptionNotice()
    stack.callback(notice.close)
    start = run_start.open_workdir(
      config, workdir, from_step, accept_changes, notice, stack
    )
    with notice.interruptible():
      run, state = prepare(start)

    # Train until the last step or a signal.
    recorder = step_profile.Recorder(record_profile, start.writer.say)
    done = run_loop(start, run, state, notice, recorder)
    if done < config.total_steps:
      is_saved = start.checkpoints.latest_step == done
      saved = 'checkpoint saved' if is_saved else 'nothing to save'
      start.writer.say(f'stopped by {notice.reason} after step {done}; {saved}')
      if notice.reason == stop_notice.INTERRUPT:
        raise stop_notice.Interrupted
  return done


def run_loop(
  start: run_start.Start,
  run: loop.Run,
  state: train_state.State,
  notice: stop_notice.PreemptionNotice,
  recorder: step_profile.Recorder,
) -> int:
  """Runs the training loop; after an error waits for a checkpoint in writing.

  Returns:
    Steps done.
  """
  checkpoints, done = start.checkpoints, start.checkpoints.latest_step or 0
  try:
    with notice.interruptible():
      done = loop.loop(
        run, state, done, checkpoints, start.writer, notice, recorder
      )
    checkpoints.close()
  except Exception as error:
    # Finish what is being saved, which is good, unless JAX's error may be of a
    # process that is gone, for which this one would wait.
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if not is_of_jax or jax.process_count() == 1:
      with contextlib.suppress(OSError):
        checkpoints.close()
    if isinstance(error, OSError):
      raise checkpoints.explain(error) from error
    raise
  return done


def prepare(start: run_start.Start) -> tuple[loop.Run, train_state.State]:
  """Makes the Run and its State, alike in all processes."""
  config, checkpoints, say = start.config, start.checkpoints, start.writer.say
  c = config.mesh
  mesh = device_mesh.make_mesh(c.data, c.fsdp, c.tensor)
  tasks.check_mesh(config, mesh)
  model = from_config.make_model(config, device_mesh.platform(mesh))
  task = tasks.make_task(config, model)
  data = run_data.open_data(start, mesh)
  config = data.config

  # Load weights directly into their shardings; start to compile the programs.
  key = random_keys.make_keys([config.seed])[0]
  if checkpoints.latest_step is None:
    run_setup.warn(start_warnings.of_files(config), say)
    run_setup.warn(start_warnings.of_schedule(config), say)
    run_setup.warn(start_warnings.of_words(config), say)
  pretrained, waiting = run_setup.load_nets(config, model, mesh)
  shapes = jax.eval_shape(task.init, key, pretrained)
  shapes = sharding.with_shardings(shapes, mesh)
  trained = task.trained(shapes.params)
  run_setup.warn(optimizer_warnings.of_params(config, trained), say)
  frozen = {n: p for n, p in pretrained.items() if n not in shapes.params}
  buckets = data.batches.schedule.first_use()
  programs = compilation.Programs(
    task, mesh, shapes, frozen, buckets, config.compile_threads, say
  )
  start.stack.callback(programs.close)

  # Restore or initialise the state while the programs compile.
  checkpoints.check_space(shapes)  # before anything is computed
  if checkpoints.latest_step is None:
    state = run_setup.initial_state(task, shapes, key, pretrained)
  else:
    buckets_per_step = config.buckets_per_step
    state = resuming.restore(
      checkpoints, shapes, data.batches, buckets_per_step, data.new_pass, say
    )
    scale = config.optimizer.loss_scale
    state = loss_scaling.with_scale(state, shapes, scale)
  run = loop.Run(
    config=config,
    workdir=start.workdir,
    mesh=mesh,
    task=task,
    frozen=frozen,
    key=key,
    batches=data.batches,
    dataset=data.fingerprint,
    programs=programs,
    sample_grid=sample_grid.make_sample_grid(
      config, model, frozen | waiting, data.split.trained, say
    ),
    checkpoint_config=latent_statistics.CheckpointConfig(
      config, model, task, mesh, data.make_batches, say
    ),
    check_workdir=start.lock.check,
    validator=validation.make(
      config, task, mesh, frozen, data.split, data.tokenize
    ),
  )
  return run, state


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
  done = train(
    args.config,
    args.workdir,
    args.accept_changes,
    args.from_step,
    args.record_profile,
  )
  if done == args.config.total_steps and multihost.is_primary():
    print(next_command(args.config, args.workdir))


def define_flags() -> None:
  flags.DEFINE_string(
    'workdir', None, 'folder that the run writes to and resumes from'
  )
  flags.DEFINE_bool(
    'accept_changes',
    False,
    'resume although the config or the dataset changes the order of the data '
    'or what is trained',
  )
  flags.DEFINE_integer(
    'from_step',
    None,
    'resume from the checkpoint of this step; later ones are moved to '
    'WORKDIR/set_aside',
  )
  flags.DEFINE_string(
    'record_profile',
    None,
    'folder for a profile of the third to fifth step of this start, which '
    '`plan --from_trace` shows',
  )
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.mark_flags_as_required(['config', 'workdir'])


if __name__ == '__main__':
  define_flags()
  cli.define_cache_dir()
  cli.run(main, memory=MEMORY)
