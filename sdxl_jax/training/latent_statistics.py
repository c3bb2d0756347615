"""What a checkpoint of stage 0 tells later stages of its latents."""

import contextlib
import functools
import itertools

import jax
import numpy as np

from sdxl_jax.distributed import sharding
from sdxl_jax.models import latent_scaling


def make_describe(config, nets, task, mesh, make_batches, say):
  """describe({net: EMA parameters}) -> the config, as a dict, of a checkpoint.

  With config.autoencoder.measure_latents it has the scaling_factor, and perhaps
  latents_mean, of the first pictures of the schedule. An encoder that does not
  learn keeps those it came with.

  Args:
    config, nets, task: of the run.
    mesh: of all devices.
    make_batches: () -> pipeline.Batches of this process's rows.
    say: takes a line for the user.
  """
  c = config.autoencoder
  learns = config.task == 'autoencoder' and not c.decoder_only
  if not (learns and c.measure_latents):
    return lambda ema: config.to_dict()
  nets = nets.replace(attention='xla')

  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def measure(params, image):
    return [
      x.mean(0) for x in latent_scaling.statistics(nets.encode(params, image))
    ]

  def images(batches):
    rows = config.global_batch_size // task.parts
    for bucket, batch in itertools.islice(
      batches, -(-c.measure_latents // rows)
    ):
      spec = task.batch_spec(bucket)
      yield sharding.put_batch(batch, mesh, spec)['image']

  def describe(ema):
    with contextlib.closing(make_batches()) as batches:
      found = [measure(ema, image) for image in images(batches)]
    mean, square = np.mean(jax.device_get(found), axis=0)
    factor, mean = latent_scaling.standard(mean, square)
    fields = {'scaling_factor': factor}
    if c.measure_mean:
      fields |= {'latents_mean': mean, 'latents_std': (1.0,) * len(mean)}
    say(f'latents have unit variance with scaling_factor {factor:.4g}')
    described = config.to_dict()
    described['vae'] |= fields
    return described

  return describe
