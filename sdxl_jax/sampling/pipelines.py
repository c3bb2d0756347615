"""All that drawing needs, from published weights or the workdir of a run."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from sdxl_jax.conditioning import text_encoder, tokenizer
from sdxl_jax.diffusion import noise_levels, scheduler_config
from sdxl_jax.distributed import sharding
from sdxl_jax.sampling import origins
from sdxl_jax.training import diffusion_task
from sdxl_jax.training import task as tasks
from sdxl_jax.weights import lora_files, published, recognise

DTYPES = 'float32', 'bfloat16'


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
  if recognise.is_published(folder):
    origins.check_published(folder, average)
    pipeline = load_published(folder, fields, mesh, memory)
  else:
    config = origins.saved_config(folder)
    nets = tasks.make_nets(config).replace_each(fields)
    params = origins.load_nets(
      folder, nets, nets.configs, mesh, average, memory
    )
    pipeline = make_pipeline(config, nets, params, mesh)
  if not loras:
    return pipeline
  params = lora_files.add(pipeline.params, loras)
  return dataclasses.replace(pipeline, params=params)


def runtime(name, dtype, vae_dtype, attention):
  """Fields of a net's config that say how it runs where pictures are drawn."""
  dtype = vae_dtype if name == 'vae' else dtype
  fields = {'dtype': dtype, 'param_dtype': dtype}
  if name != 'unet':
    return fields
  if attention == 'auto':
    attention = tasks.fastest_attention()
  return fields | {'attention': attention}


def load_published(path, fields_of, mesh, memory):
  model = recognise.open_model(path)
  published.check_whole(model)
  configs, params = {'text_encoder': None}, {}
  for name in model.index.components:
    configs[name], params[name] = model.net(name).load(
      origins.sharder(mesh, memory), **fields_of(name)
    )
  towers = configs['text_encoder'], configs['text_encoder_2']
  trained, _ = scheduler_config.read(model.scheduler, 'euler')
  nets = diffusion_task.Nets(
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
    tokenize=tokenizer.load(origins.first(config.init_from)),
    scheduler=scheduler_of(nets),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
    buckets=tuple(map(tuple, config.data.buckets)),
  )


def scheduler_of(nets):
  """The scheduler_config.json that nets of a run are drawn with."""
  # Only 'trailing' visits the last timestep, where zero SNR is.
  spacing = 'trailing' if nets.schedule.zero_terminal_snr else 'leading'
  return scheduler_config.write(nets.schedule, noise_levels.Spacing(spacing))
