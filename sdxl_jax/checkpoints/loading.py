"""Loads parameters from pretrained weights, or from the workdir of a run.

A workdir has the nets that its run trained; the other nets are loaded from
where that run started.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from sdxl_jax.checkpoints import (
  orbax_checkpoint,
  quantized_nets,
  run_params,
  run_sources,
  source_checks,
  source_configs,
)
from sdxl_jax.distributed import device_mesh, multihost, sharding
from sdxl_jax.models import autoencoder_gan, from_config, sdxl
from sdxl_jax.weights import (
  checked_cast,
  formats,
  hub,
  lpips_weights,
  net_loading,
  pretrained,
  read_options,
)
from sdxl_jax.weights.lora import merge, trained_factors

# Fields of a net's config that do not belong to its architecture.
RUNTIME = (
  'dtype',
  'param_dtype',
  'weights_dtype',
  'attention',
  'remat',
  'scan_blocks',
  'scan_unroll',
)
Source = source_configs.Source
Nets = sdxl.SDXL | autoencoder_gan.AutoencoderGAN
Tree = dict[str, Any]  # of arrays, or of jax.ShapeDtypeStruct
Mesh = jax.sharding.Mesh


def load_params(
  source: Source | None,
  nets: Nets,
  names: Collection[str],
  mesh: Mesh | None = None,
  average: str = 'ema',
  memory: str = 'device',
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> dict[str, Tree]:
  """Loads the parameters of some nets, each array directly into its sharding.

  Args:
    source: pretrained weights, the workdir of a run, or one of its checkpoints.
      Nets that the run did not train are loaded from where it started.
    nets: whose configs the source's must match.
    names: of the nets to load.
    mesh: of the devices; None: the default device.
    average: which parameters of a run, see run_params.restore.
    memory: see make_sharding_fn.
    options: how pretrained weights are read.

  Returns:
    {net: tree of arrays}.

  Raises:
    ValueError: if a net of the source has another architecture.
    FileNotFoundError: if there is no such source, or it lacks a net.
  """
  if not source:
    raise ValueError(
      f'config.init_from is empty, and {", ".join(names)} must be loaded from '
      'somewhere: pass pretrained weights or a workdir'
    )
  if not formats.is_published(source):
    return load_run(source, nets, names, mesh, average, memory, options)
  # Pretrained weights have all nets, and no averages.
  source_configs.check_published(source, average)
  source, options = hub.locate(source, options, names)
  model = formats.open_model(source, options=options)
  if 'unet' in names:
    source_checks.check_timesteps(model)
  return load_pretrained_nets(model, nets, names, mesh, memory)


def load_start(
  config: config_dict.ConfigDict,
  nets: Nets,
  names: Collection[str],
  mesh: Mesh | None = None,
  memory: str = 'device',
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> dict[str, Tree]:
  """Loads nets from where a run with this config starts; see load_params."""
  options, params = run_sources.reading(config, options), {}
  for source, group in run_sources.by_source(config, names).items():
    is_other = source and source != config.init_from
    chosen = formats.for_other(source, options) if is_other else options
    params |= load_params(
      source, nets, group, mesh, memory=memory, options=chosen
    )
  return params


def load_run(
  source: Source,
  nets: Nets,
  names: Collection[str],
  mesh: Mesh | None,
  average: str,
  memory: str,
  options: read_options.ReadOptions,
) -> dict[str, Tree]:
  """Loads nets of a run, some quantised as a whole; see load_params."""
  stored = [name for name in quantized_nets.names(nets) if name in names]
  others = [name for name in names if name not in stored]
  params = {}
  if others:
    params |= load_run_params(
      source, nets, others, mesh, average, memory, options
    )
  # Each process has all of them in its host's memory.
  if stored:
    plain = quantized_nets.unquantized(nets)
    whole = load_run_params(
      source, plain, stored, None, average, 'pinned_host', options
    )
    shard = make_sharding_fn(mesh, memory)
    params |= quantized_nets.quantize(nets, whole, lambda name: shard)
  return params


def load_run_params(
  source: Source,
  nets: Nets,
  names: Collection[str],
  mesh: Mesh | None,
  average: str,
  memory: str,
  options: read_options.ReadOptions,
) -> dict[str, Tree]:
  """Loads nets from a run, and from where it started; see load_params."""
  folder = orbax_checkpoint.find(source)
  config = source_configs.saved_config(folder)
  trained = [name for name in names if name in config.trained]
  frozen = [name for name in names if name not in config.trained]
  params = {}
  if trained:
    # Another architecture is refused before anything is read.
    saved_nets = from_config.make_model(config)
    for name in trained:
      fields = runtime_fields(nets, name)
      fields.pop('scan_blocks', None)  # arrays are stacked as they were saved
      saved = dataclasses.replace(saved_nets.configs[name], **fields)
      source_checks.check_same(name, nets.configs[name], saved, folder)
    # An offloaded net goes to the host's CPU first, never as a whole to a
    # device that may not hold it.
    offload = memory != 'device'
    restored = run_params.restore(folder, mesh, trained, average, offload)
    for name in trained:
      checked_cast.check_tree(restored[name], f'{folder}, {name}')
      dtype = nets.configs[name].param_dtype
      params[name] = checked_cast.cast_params(
        restored.pop(name), dtype, f'{folder}, {name}'
      )
      if offload:
        params[name] = put_params(params[name], make_sharding_fn(mesh, memory))
  if frozen:
    params |= load_start(config, nets, frozen, mesh, memory, options)
  # Factors are merged into nets that the run itself left frozen.
  if 'lora' in config.trained:
    adapter = load_trained_lora(folder, config, mesh, average)
    params = merge.merge(params, [(adapter.of(params), 1.0)])
  return params


def load_pretrained_nets(
  model: pretrained.Model,
  nets: Nets,
  names: Collection[str],
  mesh: Mesh | None,
  memory: str = 'device',
) -> dict[str, Tree]:
  """Loads some nets of pretrained weights; see load_params."""
  opened = {name: model.net(name) for name in names}
  fields = {name: runtime_fields(nets, name) for name in names}
  # Another architecture is refused before anything is read.
  for name, net in opened.items():
    source_checks.check_same(
      name, nets.configs[name], net.config(**fields[name]), net.location
    )
  shards = dict.fromkeys(opened, make_sharding_fn(mesh, memory))
  loaded = net_loading.load_all(opened, shards, fields)
  return {name: params for name, (_, params) in loaded.items()}


def load_trained_lora(
  folder: pathlib.Path,
  config: config_dict.ConfigDict,
  mesh: Mesh | None = None,
  average: str = 'ema',
) -> merge.Lora:
  """Loads the low-rank factors of one checkpoint of a run with this config."""
  targets = from_config.make_model(config).targets
  factors = run_params.restore(folder, mesh, ['lora'], average)['lora']
  return trained_factors.from_training(factors, targets, multihost.fetch)


def load_lpips(
  config: config_dict.ConfigDict,
  nets: autoencoder_gan.AutoencoderGAN,
  mesh: Mesh | None,
) -> Tree:
  """Loads the parameters of LPIPS from the files of config.autoencoder.lpips"""
  paths = config.autoencoder.lpips
  return lpips_weights.load_lpips(paths, nets.lpips, make_sharding_fn(mesh))


def put_params(params: Tree, shard: Callable[[Tree], Tree]) -> Tree:
  """Moves arrays to the shardings that `shard` adds to their shapes."""

  def put(x, target):
    return jax.device_put(np.asarray(x), target.sharding)

  return jax.tree.map(put, params, shard(params))


def make_sharding_fn(
  mesh: Mesh | None, memory: str = 'device'
) -> Callable[[Tree], Tree]:
  """Makes the function that adds shardings to a tree of shapes.

  Args:
    mesh: of the devices; None: the first local one.
    memory: 'device', or 'pinned_host': the memory of the devices' hosts, from
      which sharding.fetch copies.
  """
  if mesh is None:
    mesh = device_mesh.make_mesh(devices=jax.local_devices()[:1])
  return lambda target: sharding.with_shardings(target, mesh, memory)


def runtime_fields(nets: Nets, name: str) -> dict[str, Any]:
  """Returns the fields of a net's config that are not of its architecture."""
  config = nets.configs[name]
  return {f: getattr(config, f) for f in RUNTIME if hasattr(config, f)}
