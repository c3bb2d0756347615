"""One run of sampling: where it starts, and who takes which of its steps.

`sample.generate` puts these together.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from sdxl_jax import coding, pipelines
from sdxl_jax.diffusion import (
  denoiser,
  noise_levels,
  samplers,
  starts,
)

# What an image's key draws, beside the numbers of its steps and the encoding of
# a picture: the noise laid on that, and that on what a refiner goes over.
NOISING, REFINING = coding.ENCODING + 1, coding.ENCODING + 2


class Start(NamedTuple):
  """x at the noise level of a run's step `first`."""

  x: jax.Array
  first: int
  kept: starts.Kept | None = None


def make_start(
  pipeline, levels, keys, size, *, image, latents, mask, strength, noise
):
  """The Start of noise, of a picture, or of one part of it.

  Args:
    pipeline: pipelines.Pipeline.
    levels: noise_levels.Levels of the run.
    keys: [b], one per image.
    size: (height, width) in px.
    image, latents, mask, strength: see sample.generate, with all rows.
    noise: N(0, 1) in place of the keys' own, or None.
  """
  shape = len(keys), *latent_shape(pipeline.nets, size)
  if image is None and latents is None:
    noise = samplers.draw_noise(keys, 0, shape) if noise is None else noise
    return Start(levels.init_scale * noise, 0)
  if noise is None:
    noise = samplers.draw_noise(keys, NOISING, shape)
  if latents is None:
    latents = coding.encode_all(pipeline, image, keys)
  first = starts.first_step(len(levels.timesteps), strength)
  x = starts.from_latents(latents, noise, levels, first)
  if mask is None:
    return Start(x, first)
  if strength == 1:  # nothing is known of what is under the mask
    x = levels.init_scale * noise
  picked = starts.to_latent_mask(mask, pipeline.nets.vae.downscale)
  kept = starts.Kept(latents, noise, picked, levels.sigmas[first])
  return Start(x, first, kept)


def latent_shape(nets, size):
  f = nets.vae.downscale
  return size[0] // f, size[1] // f, nets.vae.latent_channels


class Turn(NamedTuple):
  """Steps in a row that one of the pipelines takes with one sampler."""

  who: int
  sampler: str
  start: int
  stop: int
  renewed: bool = False  # from what came before, made noisy again


def turns(levels, sampler, first, refiner_start=None, refiner_strength=None):
  """The Turns of a run from its step `first`.

  Args:
    levels: noise_levels.Levels of the run.
    sampler: its name.
    first: of its steps.
    refiner_start: share of all noise levels after which a refiner takes over.
    refiner_strength: the refiner goes over the base's picture instead.
  """
  steps = len(levels.timesteps)
  if refiner_strength is not None:
    again = starts.first_step(steps, refiner_strength)
    return [
      Turn(0, sampler, first, steps),
      Turn(1, sampler, again, steps, renewed=True),
    ]
  if refiner_start is None:
    return [Turn(0, sampler, first, steps)]
  cut = max(first, noise_levels.steps_until(levels, refiner_start))
  if sampler != 'heun' or cut == first:
    return [Turn(0, sampler, first, cut), Turn(1, sampler, cut, steps)]
  # The reference stops between Heun's two calls, after Euler's step, and its
  # refiner takes that step once more.
  return [
    Turn(0, 'heun', first, cut - 1),
    Turn(0, 'euler', cut - 1, cut),
    Turn(1, 'heun', cut - 1, steps),
  ]


def check_nets(pipeline):
  """Raises ValueError for nets of another kind than SDXL's."""
  unet, vae = pipeline.nets.unet, pipeline.nets.vae
  if unet.in_channels != vae.latent_channels:
    raise ValueError(
      f'the UNet takes {unet.in_channels} channels and the autoencoder gives '
      f'{vae.latent_channels}: nets that see a mask are not supported; any '
      'base model repaints what is under one'
    )


def check_fit(base, refiner):
  """Raises ValueError where the second cannot go on from the first."""
  if base.nets.refiner or not refiner.nets.refiner:
    raise ValueError(
      'refiner must be a refiner, which has one text encoder, and the pipeline '
      'before it a base'
    )
  facts = [
    {name: getattr(p.nets.vae, name) for name in pipelines.LATENTS}
    | {'schedule': p.nets.schedule, 'channels': p.nets.unet.in_channels}
    for p in (base, refiner)
  ]
  for name, ours in facts[0].items():
    if ours != facts[1][name]:
      raise ValueError(
        f'base and refiner do not fit together: {name} is {ours} of the one '
        f'and {facts[1][name]} of the other'
      )


def condition(pipeline, rows, texts, sizes, negative_sizes, guided):
  """(context, vector) of all rows, in pairs with those without prompt first."""
  nets = pipeline.nets
  positive, negative = nets.text.encode_prompts(
    *(pipeline.params, pipeline.tokenize),
    force_zeros=pipeline.force_zeros,
    place=rows.place,
    **texts,
  )
  told = [
    (context, vector(nets, pooled, like(pooled, sizes)))
    for (context, pooled), sizes in (
      (negative, negative_sizes),
      (positive, sizes),
    )
  ]
  return jax.tree.map(denoiser.in_pairs, *told) if guided else told[1]


def like(pooled, sizes):
  """Sizes for every row of pooled text."""
  tile = lambda value: np.tile(np.float32(value), (len(pooled), 1))
  told = {name: tile(value) for name, value in sizes.items()}
  return told | {'aesthetic_score': told['aesthetic_score'][:, 0]}


@functools.partial(jax.jit, static_argnames='nets')
def vector(nets, pooled, sizes):
  return nets.vector(pooled, sizes)


class Guidance(NamedTuple):
  """How far from the prediction without prompt; 1 or less: it is not asked."""

  scale: float
  rescale: float


def run(
  experts, told, plan, start, levels, keys, guidance, watch=None, every=1
):
  """Takes all steps of a plan.

  Args:
    experts: pipelines.Pipelines.
    told: (context, vector) of each.
    plan: list of Turns.
    start: Start.
    levels: noise_levels.Levels.
    keys: [b], one per image.
    guidance: Guidance.
    watch: called as watch(steps done, steps in all, denoised), or None.
    every: steps between two calls.

  Returns:
    Latents [b, h, w, c].
  """
  x, done, total = start.x, 0, sum(t.stop - t.start for t in plan)
  for turn in plan:
    nets, params = experts[turn.who].nets, experts[turn.who].params
    params = {n: params[n] for n in ('unet', 'lora') if n in params}
    if turn.renewed:
      noise = samplers.draw_noise(keys, REFINING, x.shape)
      latents = finish(levels, start.kept, x)
      x = starts.from_latents(latents, noise, levels, turn.start)
    carry = samplers.begin(samplers.SAMPLERS[turn.sampler], x)
    leap = every if watch else turn.stop - turn.start
    for i in range(turn.start, turn.stop, leap or 1):
      stop = min(i + leap, turn.stop)
      carry = advance(
        *(nets, params, carry, told[turn.who], levels, keys),
        *(np.int32(i), np.int32(stop), guidance, start.kept),
        sampler=turn.sampler,
        guided=guidance.scale > 1,
      )
      done += stop - i
      if watch:
        carry.x.block_until_ready()  # what is dispatched is not done
        watch(done, total, carry.denoised)
    x = carry.x
  return finish(levels, start.kept, x)


@functools.partial(jax.jit, static_argnames=('nets', 'sampler', 'guided'))
def advance(
  nets,
  params,
  carry,
  told,
  levels,
  keys,
  start,
  stop,
  guidance,
  kept,
  *,
  sampler,
  guided,
):
  """Some steps of a turn.

  Compiled once per shape, sampler and number of all steps.
  """
  net = nets.denoiser(params, *told)
  if guided:
    net = denoiser.guide(net, *guidance)
  denoise = denoiser.make_denoiser(net, levels)
  if kept is not None:
    denoise = starts.keeping(denoise, kept)
  sampler = samplers.SAMPLERS[sampler]
  return samplers.advance(
    denoise, carry, levels, sampler, start, stop, keys=keys
  )


@jax.jit
def finish(levels, kept, x):
  """x of the last step > latents, with what was kept of a picture."""
  latents = levels.final_scale * x
  if kept is None:
    return latents
  return kept.mask * latents + (1 - kept.mask) * kept.latents
