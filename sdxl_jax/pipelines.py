"""All that drawing needs, from a diffusers folder or the workdir of a run."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import config_dict

from sdxl_jax.conditioning import text_encoder, tokenizer
from sdxl_jax.diffusion import schedule, scheduler_config
from sdxl_jax.training import checkpoint, diffusion_task, optimizer
from sdxl_jax.training import task as tasks
from sdxl_jax.weights import files

# Fields of a net's config that do not belong to its architecture.
RUNTIME = ('dtype', 'param_dtype', 'attention', 'remat', 'scan_blocks')


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """All that drawing needs; see `load`."""

  nets: diffusion_task.Nets
  params: Any  # {'unet', 'vae', 'text_encoder', 'text_encoder_2'}
  tokenize: tokenizer.Tokenizer
  scheduler: dict  # as in scheduler_config.json
  force_zeros: bool  # no negative prompt means zeros, not an encoded ''
  size: tuple[int, int]  # (height, width) in px where none is given


def load(folder, dtype='float32'):
  """The Pipeline of a diffusers folder or of a workdir (its EMA parameters).

  Args:
    folder: path.
    dtype: compute, 'float32' or 'bfloat16'; parameters are held in it too.
  """
  folder = pathlib.Path(folder)
  if (folder / 'model_index.json').is_file():
    return load_folder(folder, dtype)
  if (folder / 'config.json').is_file():
    return load_workdir(folder, dtype)
  raise FileNotFoundError(
    f'{folder} has neither model_index.json (a diffusers folder) nor '
    'config.json (the workdir of a training run): give one of the two'
  )


def load_folder(folder, dtype):
  index, scheduler = (
    files.load_model_index(folder),
    files.load_scheduler(folder),
  )
  configs, params = {'text_encoder': None}, {}
  for name in index.components:
    configs[name], params[name] = files.load_component(
      folder, name, dtype=dtype, param_dtype=dtype
    )
  towers = configs['text_encoder'], configs['text_encoder_2']
  trained, _ = scheduler_config.read(scheduler, 'euler')
  nets = diffusion_task.Nets(
    unet=configs['unet'],
    vae=configs['vae'],
    text=text_encoder.TextEncoder(*towers),
    schedule=trained,
    refiner=index.refiner,
  )
  tokenize = tokenizer.load(folder)
  side = files.load_sample_size(folder) * configs['vae'].downscale
  params = jax.tree.map(jnp.asarray, params)
  return Pipeline(
    nets, params, tokenize, scheduler, index.force_zeros, (side, side)
  )


def load_workdir(folder, dtype):
  config = config_dict.ConfigDict(
    json.loads((folder / 'config.json').read_text())
  )
  nets = tasks.make_nets(config)
  params = restore_ema(folder, tasks.make_task(config, nets))
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  nets = nets.replace(dtype=dtype, param_dtype=dtype)
  frozen = sorted(set(nets.configs) - set(params))
  params |= load_nets(config.init_from, nets, frozen)
  return make_pipeline(config, nets, jax.tree.map(jnp.asarray, params))


def load_nets(folder, nets, names):
  """{name: params} of some of the nets from a diffusers folder.

  Raises:
    ValueError: where the folder's nets are not ours, naming the fields.
  """
  params = {}
  for name in names:
    ours = nets.configs[name]
    fields = {f: getattr(ours, f) for f in RUNTIME if hasattr(ours, f)}
    theirs, params[name] = files.load_component(folder, name, **fields)
    check_same(name, ours, theirs, folder)
  return params


def check_same(name, ours, theirs, folder):
  rows = [
    f'{f.name}: {getattr(ours, f.name)} here, {getattr(theirs, f.name)} there'
    for f in dataclasses.fields(ours)
    if getattr(ours, f.name) != getattr(theirs, f.name)
  ]
  if rows:
    raise ValueError(
      f'{folder} has another {name} than config.{name}:\n  '
      + '\n  '.join(rows)
      + '\nChange these fields of the config, or take other weights'
    )


def make_pipeline(config, nets, params):
  """The Pipeline of a training config's nets."""
  # Only 'trailing' visits the last timestep, where zero SNR is.
  spacing = 'trailing' if nets.schedule.zero_terminal_snr else 'leading'
  return Pipeline(
    nets=nets,
    params=params,
    tokenize=tokenizer.load(config.init_from or None),
    scheduler=scheduler_config.write(nets.schedule, schedule.Spacing(spacing)),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
  )


def restore_ema(workdir, task):
  """The EMA parameters of the latest checkpoint; the rest stays on disk."""
  state = jax.eval_shape(task.init, jax.random.key(0))
  ema = optimizer.ema_params(state.opt_state)
  wanted = {id(x) for x in jax.tree.leaves(ema)}
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  place = lambda x: (
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    if id(x) in wanted
    else ocp.PLACEHOLDER
  )
  checkpoints = checkpoint.Checkpoints(workdir)
  if checkpoints.latest_step is None:
    raise FileNotFoundError(
      f'{workdir} has no checkpoint yet: wait for the first, or give another '
      'folder'
    )
  state, _ = checkpoints.restore(jax.tree.map(place, state))
  checkpoints.close()
  return optimizer.ema_params(state.opt_state)
