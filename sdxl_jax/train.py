"""Train: config > mesh > task > data > restore > loop.

  python -m sdxl_jax.train --config configs/tiny.py --workdir DIR

To resume, run the same command again.
"""

import concurrent.futures
import json
import math
import pathlib
import sys
import time

import jax
import tqdm
from absl import app, flags, logging
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import config_flags

from sdxl_jax import pipelines, sample
from sdxl_jax.conditioning import tokenizer
from sdxl_jax.data import images, pipeline, sources
from sdxl_jax.distributed import mesh as meshes
from sdxl_jax.distributed import sharding
from sdxl_jax.training import checkpoint, limits, metrics, optimizer
from sdxl_jax.training import task as tasks


def train(config, workdir):
  """Trains as the config says; everything that it writes goes to workdir.

  Raises:
    ValueError: on a config, data or checkpoint that does not fit, or on a loss
      that is not finite; checkpoints remain as they were.
  """
  workdir = pathlib.Path(workdir)
  limits.check(config)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.max_to_keep)
  write_config(config, workdir, checkpoints.latest_step)
  cache_compilations(workdir / 'compiled')

  # Mesh, nets, task and data.
  mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp)
  nets = tasks.make_nets(config)
  task = tasks.make_task(config, nets)
  given = load_weights(config, nets)
  frozen = {k: given.pop(k) for k in sorted(set(given) - set(config.trained))}
  frozen = jax.device_put(frozen, sharding.tree_shardings(frozen, mesh))
  batches = make_batches(config)

  # Shapes first, then compiled gradients per bucket, in order of first use.
  key = jax.random.key(config.seed)
  shapes = with_shardings(mesh, jax.eval_shape(task.init, key, given))
  steps, update = compile_ahead(
    config.compile_threads, task, mesh, shapes, frozen, batches.schedule
  )

  state = start(checkpoints, task, shapes, key, given, batches)
  del given
  first = int(state.step)

  writer = metrics.Writer(workdir, first, config.total_steps)
  reporter = metrics.Reporter(
    writer,
    every=config.log_every,
    batch_size=config.global_batch_size,
    learning_rate=tasks.make_learning_rate(config),
    batches=batches,
  )
  for step in range(first, config.total_steps):
    started = time.monotonic()
    bucket, batch = next(batches)
    batch = sharding.put_batch(batch, mesh)
    reporter.waited(time.monotonic() - started)
    gradients, result = steps[bucket].result()(state, frozen, batch, key)
    state, more = update.result()(state, gradients)
    reporter.add(step, bucket, result | more)

    done = step + 1
    if is_due(done, config.checkpoint.every, config.total_steps):
      reporter.flush()  # a state is saved only once its loss is known
      checkpoints.save(done, state, batches.get_state(), config.to_dict())
    if is_due(done, config.samples.every, config.total_steps):
      reporter.flush()
      params = frozen | optimizer.ema_params(state.opt_state)
      draw_samples(config, nets, params, done, workdir, writer)

  checkpoints.close()
  writer.close()
  batches.close()


def is_due(done, every, total):
  return every and (done % every == 0 or done == total)


def write_config(config, workdir, latest_step):
  """Saves the config; if the workdir has checkpoints, it must be theirs."""
  path = workdir / 'config.json'
  new = json.loads(config.to_json())
  if path.exists() and latest_step is not None:
    rows = limits.changed(json.loads(path.read_text()), new)
    if rows:
      raise ValueError(
        f'{workdir} holds a run with another config. Changed (old > new):\n  '
        + '\n  '.join(rows)
        + '\nTake the old values to resume it, or another workdir to start anew'
      )
  path.write_text(json.dumps(new, indent=2) + '\n')


def cache_compilations(folder):
  """Compiled programs survive the run, so that resuming starts at once."""
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  # XLA's own caches write the folder's path into the key of every program, so
  # that a workdir that was copied or moved would compile all of them again.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  # JAX opens its cache once: without this, programs would go where an earlier
  # run in this process put them, or nowhere if it compiled without a cache.
  compilation_cache.reset_cache()


def make_batches(config):
  kind = config.data.source
  settings = config.data[kind].to_dict()
  # Where guidance compares with zeros, the task zeroes encoded text instead.
  dropout = config.caption_dropout if config.uncond == 'empty' else 0.0
  return pipeline.make_batches(
    sources.make_source(kind, **settings),
    tokenizer.load(config.init_from or None),
    config.data.buckets,
    config.global_batch_size,
    config.seed,
    flip_probability=config.data.flip_probability,
    caption_dropout=dropout,
    aesthetic_score=config.refiner,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
    num_threads=config.data.num_threads,
    prefetch=config.data.prefetch,
  )


def load_weights(config, nets):
  """{net: params} of `init_from`; without it, every net must be trained."""
  if not config.init_from:
    missing = sorted(set(nets.configs) - set(config.trained))
    if missing:
      raise ValueError(
        f'config.init_from is empty, but {missing} would stay random: give a '
        'diffusers folder that has them, or add them to config.trained'
      )
    return {}
  return pipelines.load_nets(config.init_from, nets, nets.configs)


def start(checkpoints, task, shapes, key, given, batches):
  """The latest checkpoint's State, or a fresh one straight onto the mesh.

  The data goes on from where that checkpoint left it.
  """
  if checkpoints.latest_step is None:
    places = jax.tree.map(lambda x: x.sharding, shapes)
    # Weights go in as an argument: a closure would compile them in.
    return jax.jit(task.init, out_shardings=places)(key, given)
  state, position = checkpoints.restore(shapes)
  batches.set_state(position)
  return state


def with_shardings(mesh, tree):
  """Shapes of a tree > the same with where each array will live."""
  places = sharding.tree_shardings(tree, mesh)
  spec = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(spec, tree, places)


def compile_ahead(threads, task, mesh, state, frozen, schedule):
  """({bucket: Future of its gradients}, Future of the update).

  Compiled in threads beside the training, in the order of first use.
  """
  pool = concurrent.futures.ThreadPoolExecutor(threads)

  def timed(name, compile_it, *args):
    start = time.monotonic()
    compiled = compile_it(task, mesh, state, *args)
    seconds = time.monotonic() - start
    tqdm.tqdm.write(f'compiled {name} in {seconds:.0f} s')
    return compiled

  first, *others = schedule.first_use()
  submit = lambda bucket: pool.submit(
    timed, f'{bucket[0]}x{bucket[1]}', tasks.compile_gradients, frozen, bucket
  )
  steps = {first: submit(first)}
  update = pool.submit(timed, 'the update', tasks.compile_update)
  steps |= {bucket: submit(bucket) for bucket in others}
  pool.shutdown(wait=False)
  return steps, update


def draw_samples(config, nets, params, step, workdir, writer):
  """A grid of the config's prompts, as a PNG and in TensorBoard."""
  c = config.samples
  pictures, _ = sample.generate(
    pipelines.make_pipeline(config, nets, params),
    list(c.prompts),
    size=c.size,
    steps=c.steps,
    sampler=c.sampler,
    guidance_scale=c.guidance_scale,
  )
  columns = math.ceil(len(pictures) ** 0.5)
  grid = images.grid(pictures, columns, list(c.prompts), c.zoom)
  images.save(workdir / 'samples' / f'{step:07d}.png', grid)
  writer.image('samples', grid, step)


def main(argv):
  del argv
  args = flags.FLAGS
  logging.set_verbosity(logging.WARNING)  # orbax tells much
  try:
    train(args.config, args.workdir)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
  c = args.config.samples
  print(
    'Now draw with it:\n'
    f'  python -m sdxl_jax.sample --weights {args.workdir} --prompt '
    f'"{c.prompts[0]}" --steps {c.steps} --guidance_scale {c.guidance_scale} '
    '--output out.png'
  )


def parse_flags(argv):
  """As absl does, but an unknown field of the config is one line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:
    sys.exit(
      f'error: {error}: the config has no such field, or it has another type; '
      'configs/default.py lists them all'
    )


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, 'where the run writes and resumes from')
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main, flags_parser=parse_flags)
