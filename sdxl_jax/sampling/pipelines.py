"""All that drawing needs, from published weights or the workdir of a run."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from sdxl_jax.checkpoints import loading
from sdxl_jax.distributed import sharding
from sdxl_jax.models import from_config, sdxl, text_encoder
from sdxl_jax.text import tokenizer
from sdxl_jax.weights import formats, pretrained
from sdxl_jax.weights.diffusers import scheduler_config
from sdxl_jax.weights.lora import lora_file

DTYPES = 'float32', 'bfloat16'


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """All that drawing needs; see `load`."""

  nets: sdxl.SDXL
  params: Any  # {'unet', 'vae', 'text_encoder', 'text_encoder_2'}
  tokenize: tokenizer.Tokenizer
  scheduler: dict  # as in scheduler_config.json
  force_zeros: bool  # no negative prompt means zeros, not an encoded ''
  size: tuple[int, int]  # (height, width) in px where none is given
  mesh: jax.sharding.Mesh | None = None  # whose devices share out a batch
  buckets: tuple = ()  # (height, width)s in px that a workdir was trained on

  def on_device(self, *names):
    """{net: parameters} of some nets, for them to run, and low-rank factors.

    Those of an offloaded pipeline are copied there now: let go of them after
    use, and wait for what uses them before other nets are asked for.
    """
    there = {name: self.params.get(name, {}) for name in (*names, 'lora')}
    return sharding.fetch(there)


def load(
  folder,
  dtype='float32',
  average='ema',
  mesh=None,
  *,
  loras=(),
  vae_dtype='float32',
  attention='auto',
  offload=False,
):
  """The Pipeline of published weights or of a workdir.

  Args:
    folder: diffusers folder, single file or orbax export; workdir, or one of
      its checkpoints.
    dtype: compute, one of DTYPES; parameters are held in it too.
    average: which parameters of a workdir: 'ema'; 'none', the last ones; or the
      width of an EMA that is put together from snapshots, such as '0.05'.
    mesh: whose devices share out a batch; the default device without it.
    loras: LoRA files to merge in, each as 'FILE' or 'FILE:WEIGHT'.
    vae_dtype: the same of the autoencoder.
    attention: of the UNet, see models/attention.py; 'auto': the fastest here.
    offload: keeps parameters in the host's memory while their net is idle.
  """
  folder = pathlib.Path(folder)
  fields = functools.partial(
    runtime, dtype=dtype, vae_dtype=vae_dtype, attention=attention
  )
  memory = 'pinned_host' if offload else 'device'
  if formats.is_published(folder):
    loading.check_published(folder, average)
    pipeline = load_published(folder, fields, mesh, memory)
  else:
    config = loading.saved_config(folder)
    nets = from_config.make_model(config)
    nets = nets.replace_each({name: fields(name) for name in nets.configs})
    params = loading.load_params(
      folder, nets, nets.configs, mesh, average, memory
    )
    pipeline = make_pipeline(config, nets, params, mesh)
  if not loras:
    return pipeline
  params = lora_file.add(pipeline.params, loras)
  return dataclasses.replace(pipeline, params=params)


def runtime(name, dtype, vae_dtype, attention):
  """Fields of a net's config that say how it runs where pictures are drawn."""
  dtype = vae_dtype if name == 'vae' else dtype
  fields = {'dtype': dtype, 'param_dtype': dtype}
  if name != 'unet':
    return fields
  if attention == 'auto':
    attention = from_config.default_attention()
  return fields | {'attention': attention}


def load_published(path, fields_of, mesh, memory):
  model = formats.open_model(path)
  pretrained.check_complete(model)
  configs, params = {'text_encoder': None}, {}
  for name in model.index.components:
    configs[name], params[name] = model.net(name).load(
      loading.make_sharding_fn(mesh, memory), **fields_of(name)
    )
  towers = configs['text_encoder'], configs['text_encoder_2']
  trained, _ = scheduler_config.read(model.scheduler, 'euler')
  nets = sdxl.SDXL(
    unet=configs['unet'],
    vae=configs['vae'],
    text=text_encoder.TextEncoder(*towers),
    schedule=trained,
    refiner=model.index.refiner,
  )
  side = model.sample_size * configs['vae'].downscale
  return Pipeline(
    nets=nets,
    params=params,
    tokenize=tokenizer.load(path),
    scheduler=model.scheduler,
    force_zeros=model.index.force_zeros,
    size=(side, side),
    mesh=mesh,
  )


def make_pipeline(config, nets, params, mesh=None):
  """The Pipeline of a training config's nets."""
  return Pipeline(
    nets=nets,
    params=params,
    tokenize=tokenizer.load(loading.base_weights(config.init_from)),
    scheduler=scheduler_config.for_run(nets.schedule),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
    buckets=tuple(map(tuple, config.data.buckets)),
  )
