"""Where parameters come from: published weights, or the workdir of a run.

A workdir has what its run trained; the rest lies where that run began.
"""

import dataclasses

import jax
import numpy as np
from ml_collections import config_dict

from sdxl_jax.checkpoints import orbax_checkpoint, run_params
from sdxl_jax.distributed import device_mesh, multihost, sharding
from sdxl_jax.models import from_config
from sdxl_jax.weights import formats, lpips_weights
from sdxl_jax.weights.lora import merge

# Fields of a net's config that do not belong to its architecture.
RUNTIME = ('dtype', 'param_dtype', 'attention', 'remat', 'scan_blocks')
LATENTS = ('scaling_factor', 'latents_mean', 'latents_std')


def check_source(folder):
  """Raises FileNotFoundError for what is no source of weights."""
  if not formats.is_published(folder):
    orbax_checkpoint.find(folder)


def check_published(folder, average):
  if average != 'ema':
    raise ValueError(
      f'average is {average!r}, but {folder} is no workdir and has no averages '
      'to choose from: leave it out, or give a workdir'
    )


def saved_config(folder):
  """The config of a workdir's latest, or of one, checkpoint."""
  saved = orbax_checkpoint.read_config(orbax_checkpoint.find(folder))
  return config_dict.ConfigDict(saved)


def base_weights(source):
  """The published weights that a chain of runs started from, or None."""
  while source and not formats.is_published(source):
    source = saved_config(source).init_from
  return source or None


def with_latent_scaling(config, source):
  """The config, how its latents are scaled told by who has the autoencoder.

  Args:
    config: of a run; where its vae.scaling_factor is a number it stays.
    source: published weights, workdir, checkpoint; '': the autoencoder is new.

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
  if formats.is_published(source):
    theirs = formats.open_model(source).net('vae').config()
  else:
    theirs = from_config.make_model(saved_config(source)).vae
  config = config.copy_and_resolve_references().unlock()
  config.vae.update({name: getattr(theirs, name) for name in LATENTS})
  return config.lock()


def load_params(source, nets, names, mesh=None, average='ema', memory='device'):
  """{name: params} of some of the nets, each array straight to its place.

  Args:
    source: published weights; workdir of a run or one of its checkpoints, of
      which the EMA parameters are taken. What that run did not train comes from
      where it started.
    nets: diffusion_task.Nets.
    names: of the nets to load.
    mesh: where to; the default device without it.
    average: as `load` has it, of what that run trained.
    memory: see `sharder`.

  Raises:
    ValueError: where the source's nets are not ours, naming the fields.
    FileNotFoundError: for no such source, or one that lacks a net.
  """
  if not source:
    raise ValueError(
      f'config.init_from is empty, and {", ".join(names)} must come from '
      'somewhere: give published weights or a workdir'
    )
  if formats.is_published(source):
    check_published(source, average)
    model = formats.open_model(source)
    load = lambda name: load_pretrained_net(model, nets, name, mesh, memory)
    return {name: load(name) for name in names}
  folder = orbax_checkpoint.find(source)
  config = saved_config(folder)
  theirs, params = from_config.make_model(config), {}
  from_here = [name for name in names if name in config.trained]
  for name in from_here:
    fields = runtime_fields(nets, name)
    fields.pop('scan_blocks', None)  # arrays are stacked as they were saved
    compared = dataclasses.replace(theirs.configs[name], **fields)
    check_same(name, nets.configs[name], compared, folder)
  if from_here:
    offload = memory != 'device'
    found = run_params.restore(folder, mesh, from_here, average, offload)
    for name in from_here:
      params[name] = cast_params(
        found.pop(name), nets.configs[name].param_dtype
      )
      if offload:
        params[name] = put_params(params[name], make_sharding_fn(mesh, memory))
  elsewhere = [name for name in names if name not in config.trained]
  if elsewhere:
    params |= load_params(
      config.init_from, nets, elsewhere, mesh, memory=memory
    )
  if 'lora' in config.trained:
    made = load_trained_lora(folder, config, mesh, average)
    params = merge.merge(params, [(made.of(params), 1.0)])
  return params


def load_pretrained_net(model, nets, name, mesh, memory='device'):
  net, fields = model.net(name), runtime_fields(nets, name)
  check_same(name, nets.configs[name], net.config(**fields), net.location)
  return net.load(make_sharding_fn(mesh, memory), **fields)[1]


def load_trained_lora(folder, config, mesh=None, average='ema'):
  """The lora.Lora of one checkpoint of a run that trained low-rank factors."""
  nets = from_config.make_model(config)
  found = run_params.restore(folder, mesh, ['lora'], average)['lora']
  return merge.from_training(jax.tree.map(multihost.fetch, found), nets.targets)


def load_lpips(config, nets, mesh):
  """LPIPS's params from where a config says that they are."""
  paths = config.autoencoder.lpips
  return lpips_weights.load_lpips(paths, nets.lpips, make_sharding_fn(mesh))


def cast_params(params, dtype):
  return jax.tree.map(lambda x: x.astype(dtype), params)


def put_params(params, shard):
  """Each array where shard(tree of shapes) says."""
  place = lambda x, there: jax.device_put(np.asarray(x), there.sharding)
  return jax.tree.map(place, params, shard(params))


def make_sharding_fn(mesh, memory='device'):
  """shard(tree of shapes): where arrays go on a mesh, or on one device.

  `memory` is the device's, or the host's from which it fetches: 'pinned_host'.
  """
  if mesh is None:
    mesh = device_mesh.make_mesh(devices=jax.local_devices()[:1])
  return lambda target: sharding.with_shardings(target, mesh, memory)


def runtime_fields(nets, name):
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
