"""Train: config > mesh > task > data > restore > loop.

  python -m sdxl_jax.train --config configs/tiny.py --workdir DIR

To resume, run the same command again.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.data import dataset, images, pipeline
from sdxl_jax.distributed import device_mesh, multihost, sharding
from sdxl_jax.ema import snapshots, transform
from sdxl_jax.models import from_config
from sdxl_jax.text import tokenizer
from sdxl_jax.training import (
  compilation,
  config_validation,
  latent_statistics,
  metrics,
  sample_grid,
  tasks,
  workdirs,
)


def train(config, workdir, accept_changes=False):
  """Trains as the config says; everything that it writes goes to workdir.

  Args:
    config: as configs/default.py describes it.
    workdir: folder, the same one for all processes.
    accept_changes: whether the run may go on with a config that changes the
      order of its data or what it trains.

  Returns:
    Steps done: config.total_steps, or fewer if SIGTERM asked to stop.

  Raises:
    ValueError: on a config, data or checkpoint that does not fit, or on a loss
      that is not finite; checkpoints remain as they were.
  """
  config_validation.check(config)
  multihost.start(config.mesh.processes)
  given = '' if 'vae' in config.from_scratch else config.init_from
  config = loading.with_latent_scaling(config, given)
  workdir = workdirs.make(workdir)
  checkpoints = orbax_checkpoint.Checkpoints(
    workdir, config.checkpoint.max_to_keep
  )
  done = checkpoints.latest_step or 0
  with contextlib.ExitStack() as stack:
    keep = lambda thing: stack.enter_context(contextlib.closing(thing))
    writer = keep(
      metrics.Writer(workdir, done, config.total_steps, multihost.is_primary())
    )
    writer.say(multihost.describe())
    workdirs.write_config(config, workdir, done, accept_changes, writer.say)
    workdirs.cache_compilations(workdir)
    stop = keep(multihost.PreemptionNotice())
    run, state = prepare(config, workdir, checkpoints, writer, keep)
    try:
      done = loop(run, state, done, checkpoints, writer, stop)
    except (ValueError, OSError):
      checkpoints.close()  # what was being saved is good
      raise
    checkpoints.close()
    if done < config.total_steps:
      writer.say(f'stopped, as told, after step {done}, which is saved')
  return done


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays the same from step to step."""

  config: Any
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  task: Any
  frozen: dict
  key: jax.Array
  batches: pipeline.Batches
  programs: compilation.Programs
  draw: Callable
  describe: Callable


def prepare(config, workdir, checkpoints, writer, keep):
  """(Run, State): all that a run needs, alike in all processes.

  Hands `keep` what is to be closed in the end.
  """
  mesh = device_mesh.make_mesh(
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor
  )
  tasks.check_mesh(config, mesh)
  nets = from_config.make_model(config, device_mesh.platform(mesh))
  task = tasks.make_task(config, nets)
  source = make_source(config, workdir, writer.say)
  take_batches = functools.partial(make_batches, config, mesh, source)
  batches = keep(take_batches())
  multihost.check_equal_across_hosts(
    tasks.run_fingerprint(config, batches.schedule)
  )

  # Weights go straight to their places; shapes say what to compile ahead.
  key = jax.random.key(config.seed)
  given = load_weights(config, nets, mesh)
  shapes = sharding.with_shardings(jax.eval_shape(task.init, key, given), mesh)
  frozen = {name: given[name] for name in given if name not in shapes.params}
  programs = compilation.Programs(
    *(task, mesh, shapes, frozen, batches.schedule.first_use()),
    threads=config.compile_threads,
    say=writer.say,
  )
  keep(programs)
  state = start(checkpoints, task, shapes, key, given, batches)
  draw = sample_grid.make_draw(config, nets, frozen, source)
  describe = latent_statistics.make_describe(
    *(config, nets, task, mesh, take_batches, writer.say)
  )
  run = Run(
    *(config, workdir, mesh, task, frozen, key, batches, programs),
    *(draw, describe),
  )
  return run, state


def loop(run, state, done, checkpoints, writer, stop):
  """Steps from `done` on; returns how many are done in the end."""
  config = run.config
  reporter = metrics.Reporter(
    writer,
    every=config.log_every,
    batch_size=config.global_batch_size,
    learning_rate=tasks.make_learning_rate(config),
    batches=run.batches,
  )
  stopping = False
  while done < config.total_steps and not stopping:
    state = take_step(run, state, done, reporter)
    done += 1
    stopping = stop.requested(done)
    if stopping or is_due(done, config.checkpoint.every, config.total_steps):
      reporter.flush()  # a state is saved only once its loss is known
      position = run.batches.get_state()
      described = run.describe(transform.ema_params(state.opt_state))
      checkpoints.save(done, state, position, described)
    c = config.optimizer
    if is_due(done, c.ema_snapshots, config.total_steps):
      reporter.flush()
      snapshots.save(run.workdir, done, state.opt_state, c.ema_widths)
    if is_due(done, config.samples.every, config.total_steps) and not stopping:
      reporter.flush()
      draw_samples(run, state, done, writer)
  return done


def take_step(run, state, step, reporter):
  """One optimizer step: gradients of each part, their sum, the update."""
  total, parts = None, run.task.parts
  for part in range(step * parts, (step + 1) * parts):
    started = time.monotonic()
    bucket, batch = next(run.batches)
    batch = sharding.put_batch(batch, run.mesh, run.task.batch_spec(bucket))
    reporter.waited(time.monotonic() - started)
    gradients, result = run.programs.gradients(bucket)(
      state.params, run.frozen, batch, run.key, np.int32(part)
    )
    reporter.add_part(part, bucket, result)
    total = gradients if total is None else run.programs.add(total, gradients)
  state, result = run.programs.update(state, total)
  reporter.end_step(step, result)
  return state


def is_due(done, every, total):
  return every and (done % every == 0 or done == total)


def make_source(config, workdir, say):
  """The source of the config; what is broken in it stands in left_out.txt."""
  source = dataset.make_source(config, say)
  names = '\n'.join(source.left_out())
  if names and multihost.is_primary():
    workdirs.replace(workdir / 'left_out.txt', names + '\n')
  return source


def make_batches(config, mesh, source):
  """pipeline.Batches of this process's rows."""
  tokenize = tokenizer.load(loading.base_weights(config.init_from))
  batch_size = config.global_batch_size // tasks.micro_batches_of(config)
  rows = sharding.local_rows(mesh, batch_size)
  return dataset.make_batches(config, source, tokenize, rows)


def load_weights(config, nets, mesh):
  """{net: params} of `init_from`; without it, every net must be trained."""
  names = [name for name in nets.configs if name not in config.from_scratch]
  if config_validation.is_precomputed(config) and not config.samples.every:
    names = ['unet'] if 'unet' in names else []
  given = {}
  if 'lpips' in names:
    names.remove('lpips')
    given['lpips'] = loading.load_lpips(config, nets, mesh)
  if config.init_from:
    return given | loading.load_params(config.init_from, nets, names, mesh)
  missing = sorted(set(nets.configs) - set(config.trained) - set(given))
  if missing:
    raise ValueError(
      f'config.init_from is empty, but {missing} would stay random: give a '
      'source of weights that has them, or add them to config.trained'
    )
  return given


def start(checkpoints, task, shapes, key, given, batches):
  """The latest checkpoint's State, or a fresh one straight onto the mesh.

  The data goes on from where that checkpoint left it. A disk that the next
  checkpoint would not fit on is refused before anything is paid for.
  """
  checkpoints.check_space(shapes)
  if checkpoints.latest_step is None:
    places = jax.tree.map(lambda x: x.sharding, shapes)
    # Weights go in as an argument: a closure would compile them in.
    return jax.jit(task.init, out_shardings=places)(key, given)
  state, position = checkpoints.restore(shapes)
  batches.set_state(position)
  return state


def draw_samples(run, state, done, writer):
  """What the EMA parameters can do, as a PNG and in TensorBoard."""
  grid = run.draw(transform.ema_params(state.opt_state))
  if multihost.is_primary():
    images.save(run.workdir / 'samples' / f'{done:07d}.png', grid)
    writer.image('samples', grid, done)


def main(args):
  done = train(args.config, args.workdir, args.accept_changes)
  if done < args.config.total_steps or not multihost.is_primary():
    return
  if args.config.task == 'autoencoder':
    print('Now measure it with sdxl_jax.evaluate, or start stage 1 from it')
    return
  c = args.config.samples
  print(
    'Now draw with it:\n'
    f'  python -m sdxl_jax.sample --weights {args.workdir} --prompt '
    f'"{c.prompts[0]}" --steps {c.steps} --guidance_scale {c.guidance_scale} '
    '--output out.png'
  )


def define_flags():
  flags.DEFINE_string('workdir', None, 'where the run writes and resumes from')
  flags.DEFINE_bool(
    'accept_changes', False, 'resume although the config changed the run'
  )
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.mark_flags_as_required(['config', 'workdir'])


if __name__ == '__main__':
  define_flags()
  cli.run(main)
