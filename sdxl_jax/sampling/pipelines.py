"""Loads all that sampling needs, from pretrained weights or a run's workdir."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sdxl_jax.checkpoints import loading
from sdxl_jax.distributed import sharding
from sdxl_jax.models import from_config, sdxl, text_encoder
from sdxl_jax.text import chunking, tokenizer
from sdxl_jax.weights import formats, pretrained
from sdxl_jax.weights.diffusers import scheduler_config
from sdxl_jax.weights.lora import lora_file

DTYPES = 'float32', 'bfloat16'


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """All that sampling needs; see `load`."""

  model: sdxl.SDXL
  params: dict[str, Any]  # {'unet', 'vae', 'text_encoder', 'text_encoder_2'}
  tokenize: tokenizer.Tokenizer
  scheduler: dict[str, Any]  # as in scheduler_config.json
  force_zeros: bool  # without negative prompt: zeros, not an encoded ''
  size: tuple[int, int]  # (height, width) in px where none is set
  mesh: jax.sharding.Mesh | None = None  # whose devices share a batch
  # (height, width)s in px that a workdir was trained on.
  buckets: tuple[tuple[int, int], ...] = ()
  zoom: int = 1  # whole factor by which images are enlarged when written
  # Of each text at least, as in training: config.max_token_length / 75.
  text_chunks: int = 1

  def on_device(self, *names: str) -> dict[str, Any]:
    """Returns the parameters of some nets, and low-rank factors, to run them.

    The parameters of an offloaded pipeline are copied to the device now: drop
    them after use, and wait for the result before other nets are fetched.
    """
    params = {name: self.params.get(name, {}) for name in (*names, 'lora')}
    return sharding.fetch(params)


def load(
  folder: str | os.PathLike[str],
  dtype: str = 'float32',
  average: str = 'ema',
  mesh: jax.sharding.Mesh | None = None,
  *,
  loras: Sequence[str] = (),
  vae_dtype: str = 'float32',
  attention: str = 'auto',
  offload: bool = False,
) -> Pipeline:
  """Loads the Pipeline of pretrained weights or of a run's workdir.

  Args:
    folder: diffusers folder, single file or orbax export; workdir, or one of
      its checkpoints.
    dtype: compute, one of DTYPES; parameters are held in it too.
    average: which parameters of a workdir: 'ema'; 'none', the last ones; or the
      width of an EMA reconstructed from snapshots, such as '0.05'.
    mesh: whose devices share a batch; the default device without it.
    loras: LoRA files to merge, each as 'FILE' or 'FILE:WEIGHT'.
    vae_dtype: compute and storage of the autoencoder.
    attention: of the UNet, see models/attention.py; 'auto': the fastest here.
    offload: keeps parameters in the host's memory while their net is idle.

  Raises:
    FileNotFoundError: where there are no weights.
    ValueError: for weights that cannot be read, or do not fit each other.
  """
  folder = pathlib.Path(folder)
  fields = functools.partial(
    runtime_fields, dtype=dtype, vae_dtype=vae_dtype, attention=attention
  )
  memory = 'pinned_host' if offload else 'device'
  if formats.is_published(folder):
    loading.check_published(folder, average)
    pipeline = load_pretrained(folder, fields, mesh, memory)
  else:
    config = loading.saved_config(folder)
    model = from_config.make_model(config)
    model = model.replace_each({name: fields(name) for name in model.configs})
    params = loading.load_params(
      folder, model, model.configs, mesh, average, memory
    )
    pipeline = make_pipeline(config, model, params, mesh)
  if not loras:
    return pipeline
  params = lora_file.add(pipeline.params, loras)
  return dataclasses.replace(pipeline, params=params)


def runtime_fields(
  name: str, dtype: str, vae_dtype: str, attention: str
) -> dict[str, Any]:
  """Returns the fields of a net's config that decide how sampling runs it."""
  dtype = vae_dtype if name == 'vae' else dtype
  fields = {'dtype': dtype, 'param_dtype': dtype}
  if name != 'unet':
    return fields
  if attention == 'auto':
    attention = from_config.default_attention()
  return fields | {'attention': attention}


def load_pretrained(
  path: pathlib.Path,
  fields_of: Callable[[str], dict[str, Any]],
  mesh: jax.sharding.Mesh | None,
  memory: str,
) -> Pipeline:
  """Loads the Pipeline of pretrained weights.

  Args:
    path: of the weights.
    fields_of: returns the fields to replace in the config of a net, by name.
    mesh: whose devices share a batch.
    memory: see loading.make_sharding_fn.
  """
  pretrained_model = formats.open_model(path)
  pretrained.check_complete(pretrained_model)
  configs, params = {'text_encoder': None}, {}
  for name in pretrained_model.index.components:
    configs[name], params[name] = pretrained_model.net(name).load(
      loading.make_sharding_fn(mesh, memory), **fields_of(name)
    )
  schedule, _ = scheduler_config.read(pretrained_model.scheduler, 'euler')
  model = sdxl.SDXL(
    unet=configs['unet'],
    vae=configs['vae'],
    text=text_encoder.TextEncoder(
      configs['text_encoder'], configs['text_encoder_2']
    ),
    schedule=schedule,
    refiner=pretrained_model.index.refiner,
  )
  side = pretrained_model.sample_size * model.vae.downscale
  return Pipeline(
    model=model,
    params=params,
    tokenize=tokenizer.load(path),
    scheduler=pretrained_model.scheduler,
    force_zeros=pretrained_model.index.force_zeros,
    size=(side, side),
    mesh=mesh,
  )


def make_pipeline(
  config: Any,
  model: sdxl.SDXL,
  params: dict[str, Any],
  mesh: jax.sharding.Mesh | None = None,
) -> Pipeline:
  """Makes the Pipeline of a training config's model and its parameters."""
  return Pipeline(
    model=model,
    params=params,
    tokenize=tokenizer.load(loading.base_weights(config.init_from)),
    scheduler=scheduler_config.for_run(model.schedule),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
    buckets=tuple(map(tuple, config.data.buckets)),
    zoom=config.samples.get('zoom', 1),
    # Configs of older runs have no such field.
    text_chunks=chunking.count_for(config.get('max_token_length', 75)),
  )
