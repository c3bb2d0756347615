"""Images per second of the training step: stage 3's, and LoRA's.

Stage 3 trains the UNet from moments and encoded text; parameters, moments and
EMA are float32. LoRA trains low-rank factors from images and tokens, with the
frozen nets in bfloat16.
"""

import time

import jax
import numpy as np

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config
from sdxl_jax.planning import cost, machines
from sdxl_jax.training import compilation, tasks, train_state
from tests.benchmarks.gpu import cases, nets, peaks, settings

WARM_UP = 2  # steps that are not counted


def measure(setting):
  """Reports a line for one rematerialisation and batch."""
  remat, batch = cases.parse_train(setting.choice)
  with setting.attempt(remat=remat, batch=batch):
    setting.report(remat=remat, batch=batch, **measure_step(setting))


def measure_step(setting):
  """Returns the fields of the line."""
  config = make_config(setting)
  mesh = device_mesh.make_mesh(devices=jax.devices()[:1])
  clock, started = peaks.CompileClock(), time.perf_counter()
  task, state, frozen = make(config, mesh)
  arguments = task, mesh, state.params, frozen, setting.size
  gradients = compilation.compile_gradients(*arguments)
  update = compilation.compile_update(task, mesh, state)
  first_s = time.perf_counter() - started
  fields = {'first_s': round(first_s, 2), **clock.fields()}

  spent, loss = take_steps(setting, config, mesh, gradients, update)
  if not np.isfinite(loss):
    raise ValueError(f'the loss is {loss}')
  fields |= settings.spread(spent[WARM_UP:])
  planned = cost.memory(gradients).peak + machines.bytes_of(state.opt_state)
  rate, flops = config.global_batch_size / fields['s'], count_flops(setting)
  return fields | {
    'attention': from_config.make_model(config).unet.attention,
    'images_per_s': settings.rounded(rate),
    'tflop_per_image': settings.rounded(flops / 1e12),
    'share_of_peak': peaks.share(rate * flops),
    'planned_gb': round(planned / peaks.GB, 2),
    'peak_gb': peaks.memory(),
    'loss': round(loss, 4),
    'jax': jax.__version__,
  }


def make_config(setting, **fields):
  """Returns the config of the case."""
  remat, batch = cases.parse_train(setting.choice)
  kind = 'lora' if setting.case.startswith('ours_lora/') else 'stage3'
  fields = {
    'unet__remat': remat,
    'global_batch_size': batch,
    'accumulation_steps': 1,
    'buckets_per_step': 1,
    **fields,
  }
  if kind == 'stage3':
    fields['data__source'] = 'precomputed'
  return nets.get_config(kind, setting, **fields)


def make(config, mesh):
  """Returns (Task, shapes of its State, shapes of the frozen nets)."""
  model = from_config.make_model(config)
  task = tasks.make_task(config, model)
  key = jax.random.key(0)
  frozen = {}
  # Moments and encoded text take the place of the frozen nets.
  if config.data.source != 'precomputed':
    shapes = jax.eval_shape(model.init, key)
    names = [name for name in model.configs if name not in config.trained]
    frozen = {name: shapes[name] for name in names}
  state = jax.eval_shape(task.init, key)
  return (
    task,
    sharding.with_shardings(state, mesh),
    sharding.with_shardings(frozen, mesh),
  )


def take_steps(setting, config, mesh, gradients, update):
  """Takes some steps; returns (seconds of each, the last loss)."""
  task, shapes, frozen_shapes = make(config, mesh)
  batch = make_batch(config, mesh, task.batch_spec(setting.size), setting.size)
  frozen = nets.draw(frozen_shapes) if frozen_shapes else {}
  state = train_state.State(
    step=nets.zeros(shapes.step),
    params=nets.draw(shapes.params),
    opt_state=nets.zeros(shapes.opt_state),
  )
  key = jax.device_put(jax.random.key(0), sharding.replicated(mesh))
  spent = []
  for i in range(WARM_UP + setting.turns):
    started = time.perf_counter()
    slopes, result = gradients(state.params, frozen, batch, key, np.int32(i))
    state, _ = update(state, slopes)
    del slopes  # before the next ones are computed
    jax.block_until_ready((state, result))
    spent.append(time.perf_counter() - started)
  return spent, float(result['loss'])


def make_batch(config, mesh, spec, size):
  """Makes a random batch on the device."""
  rng = np.random.default_rng(0)
  sizes = {
    'original_size': size,
    'crop_top_left': (0, 0),
    'target_size': size,
  }

  def make_one(name, x):
    if name in sizes:
      return np.broadcast_to(np.int32(sizes[name]), x.shape)
    if name == 'tokens':
      vocabulary = config.text_encoder.vocab_size
      return rng.integers(vocabulary, size=x.shape, dtype=np.int32)
    if name == 'image':
      return rng.uniform(-1, 1, size=x.shape).astype(x.dtype)
    return rng.normal(size=x.shape).astype(x.dtype)

  batch = {name: make_one(name, x) for name, x in spec.items()}
  return sharding.put_batch(batch, mesh, spec)


def count_flops(setting):
  """Counts the FLOPs of one image, without rematerialisation."""
  # Of XLA's attention, since those within cuDNN's are not seen.
  config = make_config(setting, unet__remat='none', unet__attention='xla')
  mesh = device_mesh.make_mesh(devices=jax.devices()[:1])
  task, state, frozen = make(config, mesh)
  arguments = task, mesh, state.params, frozen, setting.size
  traced = compilation.trace_gradients(*arguments)
  return cost.flops(traced.jaxpr) / config.global_batch_size
