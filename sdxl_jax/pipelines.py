"""All that drawing needs, from a diffusers folder or the workdir of a run."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from ml_collections import config_dict

from sdxl_jax.conditioning import text_encoder, tokenizer
from sdxl_jax.diffusion import noise_levels, scheduler_config
from sdxl_jax.distributed import mesh as meshes
from sdxl_jax.distributed import sharding
from sdxl_jax.training import (
  checkpoint,
  diffusion_task,
  optimizer,
  snapshots,
)
from sdxl_jax.training import task as tasks
from sdxl_jax.weights import files, perceptual

# Fields of a net's config that do not belong to its architecture.
RUNTIME = ('dtype', 'param_dtype', 'attention', 'remat', 'scan_blocks')
# What may be taken of a checkpoint; any other is the width of an EMA put
# together from its run's snapshots.
AVERAGES = {
  'ema': lambda state: optimizer.ema_params(state.opt_state),
  'none': lambda state: state.params,
}
AVERAGE_HELP = (
  "of a workdir: 'ema', 'none' (the last parameters), or the width of an EMA "
  'to put together from snapshots, such as 0.05'
)
DTYPES = 'float32', 'bfloat16'
LATENTS = ('scaling_factor', 'latents_mean', 'latents_std')


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """All that drawing needs; see `load`."""

  nets: diffusion_task.Nets
  params: Any  # {'unet', 'vae', 'text_encoder', 'text_encoder_2'}
  tokenize: tokenizer.Tokenizer
  scheduler: dict  # as in scheduler_config.json
  force_zeros: bool  # no negative prompt means zeros, not an encoded ''
  size: tuple[int, int]  # (height, width) in px where none is given
  mesh: jax.sharding.Mesh | None = None  # whose devices share out a batch
  buckets: tuple = ()  # (height, width)s in px that a workdir was trained on

  def on_device(self, *names):
    """{net: parameters} of some nets, for them to run.

    Those of an offloaded pipeline are copied there now: let go of them after
    use, and wait for what uses them before other nets are asked for.
    """
    return sharding.fetch({n: self.params.get(n, {}) for n in names})


def load(
  folder,
  dtype='float32',
  average='ema',
  mesh=None,
  *,
  vae_dtype='float32',
  attention='auto',
  offload=False,
):
  """The Pipeline of a diffusers folder or of a workdir.

  Args:
    folder: path of either, or of one checkpoint of a workdir.
    dtype: compute, one of DTYPES; parameters are held in it too.
    average: which parameters of a workdir: 'ema'; 'none', the last ones; or the
      width of an EMA that is put together from snapshots, such as '0.05'.
    mesh: whose devices share out a batch; the default device without it.
    vae_dtype: the same of the autoencoder.
    attention: of the UNet, see models/attention.py; 'auto': the fastest here.
    offload: keeps parameters in the host's memory while their net is idle.
  """
  folder = pathlib.Path(folder)
  fields = functools.partial(
    runtime, dtype=dtype, vae_dtype=vae_dtype, attention=attention
  )
  memory = 'pinned_host' if offload else 'device'
  if is_published(folder):
    check_published(folder, average)
    return load_published(folder, fields, mesh, memory)
  config = saved_config(folder)
  nets = tasks.make_nets(config).replace_each(fields)
  params = load_nets(folder, nets, nets.configs, mesh, average, memory)
  return make_pipeline(config, nets, params, mesh)


def runtime(name, dtype, vae_dtype, attention):
  """Fields of a net's config that say how it runs where pictures are drawn."""
  dtype = vae_dtype if name == 'vae' else dtype
  fields = {'dtype': dtype, 'param_dtype': dtype}
  if name != 'unet':
    return fields
  if attention == 'auto':
    attention = tasks.fastest_attention()
  return fields | {'attention': attention}


def is_published(folder):
  return (pathlib.Path(folder) / 'model_index.json').is_file()


def check_source(folder):
  """Raises FileNotFoundError for what is no source of weights."""
  if not is_published(folder):
    checkpoint.find(folder)


def check_published(folder, average):
  if average != 'ema':
    raise ValueError(
      f'average is {average!r}, but {folder} is a diffusers folder, which has '
      'no averages to choose from: leave it out, or give a workdir'
    )


def saved_config(folder):
  """The config of a workdir's latest, or of one, checkpoint."""
  saved = checkpoint.read_config(checkpoint.find(folder))
  return config_dict.ConfigDict(saved)


def load_published(folder, fields_of, mesh, memory):
  index = files.load_model_index(folder)
  scheduler = files.load_scheduler(folder)
  configs, params = {'text_encoder': None}, {}
  for name in index.components:
    configs[name], params[name] = files.load_component(
      folder, name, place=placer(name, mesh, memory), **fields_of(name)
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
  return Pipeline(
    nets, params, tokenize, scheduler, index.force_zeros, (side, side), mesh
  )


def placer(name, mesh, memory='device'):
  """place(path, array) of a net's parameters on a mesh, or one device.

  `memory` is the device's, or the host's from which it fetches: 'pinned_host'.
  """
  if mesh is None:
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    one = one.with_memory_kind(memory)
    return lambda path, array: jax.device_put(array, one)
  return lambda path, array: sharding.put(
    '/'.join((name, *path)), array, mesh, memory
  )


def with_latents(config, source):
  """The config, how its latents are scaled told by who has the autoencoder.

  Args:
    config: of a run; where its vae.scaling_factor is a number it stays.
    source: diffusers folder, workdir, checkpoint; '': the autoencoder is new.

  Raises:
    ValueError: where nothing tells the scale of latents that a UNet is to see.
  """
  if config.vae.kind != 'kl' or config.vae.scaling_factor is not None:
    return config
  if not source:
    if config.task == 'autoencoder':
      return config
    raise ValueError(
      'config.vae.scaling_factor is None, and no config.init_from tells it: '
      "give one of them; SDXL's is 0.13025"
    )
  if is_published(source):
    theirs = files.load_config(source, 'vae')
  else:
    theirs = tasks.make_nets(saved_config(source)).vae
  config = config.copy_and_resolve_references().unlock()
  config.vae.update({name: getattr(theirs, name) for name in LATENTS})
  return config.lock()


def load_nets(source, nets, names, mesh=None, average='ema', memory='device'):
  """{name: params} of some of the nets, each array straight to its place.

  Args:
    source: diffusers folder; workdir of a run or one of its checkpoints, of
      which the EMA parameters are taken. What that run did not train comes from
      where it started.
    nets: diffusion_task.Nets.
    names: of the nets to load.
    mesh: where to; the default device without it.
    average: as `load` has it, of what that run trained.
    memory: see `placer`.

  Raises:
    ValueError: where the source's nets are not ours, naming the fields.
    FileNotFoundError: for no such source, or one that lacks a net.
  """
  if not source:
    raise ValueError(
      f'config.init_from is empty, and {", ".join(names)} must come from '
      'somewhere: give a diffusers folder or a workdir'
    )
  if is_published(source):
    check_published(source, average)
    load = lambda name: load_net(source, nets, name, mesh, memory)
    return {name: load(name) for name in names}
  folder = checkpoint.find(source)
  config = saved_config(folder)
  theirs, params = tasks.make_nets(config), {}
  from_here = [name for name in names if name in config.trained]
  for name in from_here:
    fields = fields_of(nets, name)
    fields.pop('scan_blocks', None)  # arrays are stacked as they were saved
    compared = dataclasses.replace(theirs.configs[name], **fields)
    check_same(name, nets.configs[name], compared, folder)
  if from_here:
    task = tasks.make_task(config, theirs)
    offload = memory != 'device'
    found = restore_average(folder, task, mesh, from_here, average, offload)
    for name in from_here:
      params[name] = cast(found.pop(name), nets.configs[name].param_dtype)
      if offload:
        params[name] = move(params[name], placer(name, mesh, memory))
  elsewhere = [name for name in names if name not in config.trained]
  if elsewhere:
    params |= load_nets(config.init_from, nets, elsewhere, mesh, memory=memory)
  return params


def cast(params, dtype):
  return jax.tree.map(lambda x: x.astype(dtype), params)


def move(params, place):
  """Each array where place(path, array) puts it."""
  flat = traverse_util.flatten_dict(params)
  moved = {path: place(path, np.asarray(x)) for path, x in flat.items()}
  return traverse_util.unflatten_dict(moved)


def load_net(folder, nets, name, mesh, memory='device'):
  ours = nets.configs[name]
  fields = fields_of(nets, name)
  check_same(name, ours, files.load_config(folder, name, **fields), folder)
  place = placer(name, mesh, memory)
  return files.load_component(folder, name, place=place, **fields)[1]


def load_lpips(config, nets, mesh):
  """LPIPS's params from where a config says that they are."""
  place = placer('lpips', mesh)
  return perceptual.load_lpips(config.autoencoder.lpips, nets.lpips, place)


def fields_of(nets, name):
  """The fields of a net's config that do not belong to its architecture."""
  config = nets.configs[name]
  return {f: getattr(config, f) for f in RUNTIME if hasattr(config, f)}


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


def make_pipeline(config, nets, params, mesh=None):
  """The Pipeline of a training config's nets."""
  # Only 'trailing' visits the last timestep, where zero SNR is.
  spacing = 'trailing' if nets.schedule.zero_terminal_snr else 'leading'
  return Pipeline(
    nets=nets,
    params=params,
    tokenize=tokenizer.load(origin(config.init_from)),
    scheduler=scheduler_config.write(
      nets.schedule, noise_levels.Spacing(spacing)
    ),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
    buckets=tuple(map(tuple, config.data.buckets)),
  )


def restore_average(folder, task, mesh, names, average='ema', offload=False):
  """{name: parameters} of a checkpoint; the rest of it stays on disk.

  Args:
    folder: of one checkpoint.
    task: state.Task of its run.
    mesh: where to.
    names: of the nets.
    average: see AVERAGES.
    offload: to the host instead, since the device may not hold it all.
  """
  state = jax.eval_shape(task.init, jax.random.key(0))
  if mesh is None or offload:
    devices = jax.local_devices(backend='cpu' if offload else None)
    mesh = meshes.make_mesh(devices=devices[:1])
  state = sharding.with_shardings(state, mesh)
  if average not in AVERAGES:
    workdir, step = folder.parent.parent, int(folder.name)
    shapes = state.params
    return snapshots.rebuild(workdir, step, parse_width(average), shapes)
  choose = AVERAGES[average]
  wanted = {id(x) for n in names for x in jax.tree.leaves(choose(state)[n])}
  place = lambda x: x if id(x) in wanted else ocp.PLACEHOLDER
  state, _ = checkpoint.restore(folder, jax.tree.map(place, state))
  return choose(state)


def parse_width(average):
  """The width of an EMA, as it was typed."""
  try:
    return float(average)
  except ValueError:
    raise ValueError(
      f'average is {average!r}; it must be one of {list(AVERAGES)}, or the '
      'width of an EMA, as 0.05'
    ) from None


def origin(source):
  """The diffusers folder that a chain of runs started from, or None."""
  while source and not is_published(source):
    source = saved_config(source).init_from
  return source or None
