"""Prompts, and perhaps a picture, > pictures: `generate`."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.data import buckets
from sdxl_jax.diffusion import sampling_schedule
from sdxl_jax.distributed import batch_padding
from sdxl_jax.sampling import (
  denoising_loop,
  initial_latents,
  vae_batches,
  validation,
)
from sdxl_jax.weights.diffusers import scheduler_config


class UntrainedSizeWarning(UserWarning):
  """A size that the model was hardly trained on."""


def generate(
  pipeline,
  prompts,
  *,
  negative_prompts=None,
  prompts_2=None,
  negative_prompts_2=None,
  size=None,
  seeds=None,
  steps=50,
  sampler='euler',
  spacing=None,
  sigmas=None,
  eta=None,
  guidance_scale=5.0,
  guidance_rescale=0.0,
  original_size=None,
  crop_top_left=(0, 0),
  target_size=None,
  negative_sizes=None,
  aesthetic_score=6.0,
  negative_aesthetic_score=2.5,
  clip_skip=0,
  weighted_prompts=False,
  long_prompts=False,
  image=None,
  latents=None,
  mask=None,
  strength=None,
  refiner=None,
  refiner_start=0.8,
  refiner_strength=None,
  init_noise=None,
  tile=None,
  watch=None,
  watch_every=1,
):
  """Draws one picture per prompt, from noise or from another picture.

  A picture depends on weights, prompt, seed and settings, not on its batch nor
  on the devices that share it out (the pipeline's mesh).

  Args:
    pipeline: pipelines.Pipeline.
    prompts: list of strings, one per picture.
    negative_prompts: list of strings, or None for no text at all.
    prompts_2, negative_prompts_2: what bigG reads instead, where given.
    size: (height, width) in px; that of the picture, or the pipeline's own.
    seeds: list of ints, one per picture; 0, 1, ... by default.
    steps: sampler steps.
    sampler: name, see samplers.SAMPLERS.
    spacing, sigmas: see noise_levels.Spacing; as the scheduler's config by
      default.
    eta: 0..1, how much fresh noise a stochastic sampler takes; None: its own.
    guidance_scale: 1 or less for no guidance, at half the cost. Nets distilled
      with guidance are told it, at half the cost too and without negatives.
    guidance_rescale: 0..1, see denoiser.rescale_guidance.
    original_size, crop_top_left, target_size: what the net is told, px; the
      sizes are `size` by default.
    negative_sizes: dict of the same three names for the unconditional branch;
      as the conditional by default.
    aesthetic_score, negative_aesthetic_score: what a refiner is told of both.
    clip_skip: text encoder blocks left out, see TextEncoder.encode.
    weighted_prompts: whether (words:1.3) is a weight, see emphasis.parse.
    long_prompts: whether text beyond 77 tokens is read and not cut, see
      Tokenizer.chunks; then all pictures must take as many of these.
    image: float [-1, 1] [h, w, 3] for all or [b, h, w, 3] to start from.
    latents: scaled [b, h/8, w/8, 4] in place of an image.
    mask: [h, w] or [b, h, w] from 0 to 1: repaint the image from 0.5 on. Nets
      of 9 channels must have it, and give the rest as they have learnt.
    strength: 0..1, the share of the steps that are taken from an image; 0.3 by
      default; with a mask 1.0, which forgets what is under it.
    refiner: pipelines.Pipeline that goes on where the base ends.
    refiner_start: share of the noise levels after which it takes over.
    refiner_strength: instead it starts from the base's picture, made noisy.
    init_noise: N(0, 1) float32 [b, h/8, w/8, 4] in place of the seeds' own.
    tile: px; decodes in tiles, which takes less memory and more time, and gives
      the same picture; see tiling.decode.
    watch: called as watch(steps done, steps in all, preview) while sampling;
      preview() gives the images as far as the net sees them.
    watch_every: steps between two calls.

  Returns:
    (images, latents): float32 [b, h, w, 3] in [-1, 1], clipped, and float32
    [b, h/8, w/8, 4], numpy.

  Raises:
    ValueError: on sizes, counts or names that do not fit; it says which.
  """
  check_prompts(prompts)
  check_one_init(image, latents)
  validation.check_nets(pipeline.nets, image, mask)
  given = latents if image is None else image
  unit = pipeline.nets.vae.downscale if image is None else 1
  size = size or image_size(given, unit) or pipeline.size
  size = check_size(size, pipeline)
  strength = check_strength(strength, given, mask)
  check_count('seeds', seeds, len(prompts))
  if refiner:
    validation.check_refiner_matches_base(pipeline, refiner)
  levels = make_levels(pipeline, sampler, steps, spacing, sigmas, eta)
  rows = batch_padding.Rows(pipeline.mesh, len(prompts))
  seeds = range(len(prompts)) if seeds is None else seeds
  keys = rows.put(jnp.stack([jax.random.key(seed) for seed in seeds]))
  shape = initial_latents.latent_shape(pipeline.nets, size)
  start = initial_latents.make_start(
    *(pipeline, levels, keys, size),
    image=rows.put_each('image', image, (*size, 3)),
    latents=rows.put_each('latents', latents, shape),
    mask=rows.put_each('mask', mask, size),
    strength=strength,
    noise=rows.put_each('init_noise', init_noise, shape),
  )
  sizes = {
    'original_size': original_size or size,
    'crop_top_left': crop_top_left,
    'target_size': target_size or size,
    'aesthetic_score': aesthetic_score,
  }
  opposite = sizes | (negative_sizes or {})
  opposite['aesthetic_score'] = negative_aesthetic_score
  texts = dict(
    prompts=rows.fill(prompts),
    negative_prompts=rows.fill(negative_prompts),
    prompts_2=rows.fill(prompts_2),
    negative_prompts_2=rows.fill(negative_prompts_2),
    clip_skip=clip_skip,
    weighted=weighted_prompts,
    long=long_prompts,
  )
  guidance = denoising_loop.Guidance(
    float(guidance_scale), float(guidance_rescale)
  )
  experts = [pipeline, refiner] if refiner else [pipeline]
  told = [
    denoising_loop.condition(p, rows, texts, sizes, opposite, guidance)
    for p in experts
  ]
  plan = denoising_loop.turns(
    *(levels, sampler, start.first),
    refiner_start=refiner_start if refiner else None,
    refiner_strength=refiner_strength if refiner else None,
  )
  show = lambda z: vae_batches.decode_all(pipeline, z, tile)[: rows.count]
  seen = watch and (lambda done, total, z: watch(done, total, lambda: show(z)))
  drawn = denoising_loop.run(
    *(experts, told, plan, start, levels, keys, guidance, seen, watch_every)
  )
  return show(drawn), rows.fetch(drawn)


def make_levels(pipeline, sampler, steps, spacing, sigmas, eta):
  """The noise levels of the pipeline's scheduler, but for what is given."""
  trained, found = scheduler_config.read(pipeline.scheduler, sampler)
  given = {'kind': spacing, 'sigmas': sigmas}
  given = {name: value for name, value in given.items() if value is not None}
  found = dataclasses.replace(found, **given)
  return sampling_schedule.make_sampling_schedule(
    trained, found, sampler, steps, eta
  )


def image_size(array, unit):
  """(height, width) in px of [..., h, w, c] whose elements are `unit` px."""
  if array is None:
    return None
  return tuple(unit * side for side in np.shape(array)[-3:-1])


def check_size(size, pipeline):
  """(height, width) as ints, or an error with the nearest that fit."""
  (h, w), factor = size, pipeline.nets.vae.downscale
  if h < factor or w < factor or h % factor or w % factor:
    near = tuple(max(factor, round(s / factor) * factor) for s in size)
    raise ValueError(
      f'size {h} x {w} (height x width): both must be positive multiples of '
      f'{factor}; the nearest such size is {near[0]} x {near[1]}'
    )
  fault = describe_untrained_size((h, w), pipeline)
  if fault:
    warnings.warn(
      f'size {h} x {w} is none {fault}; what you get may be cropped, or have '
      'everything twice',
      UntrainedSizeWarning,
      stacklevel=3,
    )
  return int(h), int(w)


def describe_untrained_size(size, pipeline):
  """What trained sizes a size is none of; '' if it is one."""
  (h, w), side = size, pipeline.size[0]
  if size in pipeline.buckets:
    return ''
  if pipeline.buckets:
    near = pipeline.buckets[buckets.assign([size], pipeline.buckets)[0]]
    return (
      f"of the run's buckets, the nearest of which is {near[0]} x {near[1]}"
    )
  # The areas of the paper's 40 buckets, appendix I, are 88 to 100 %.
  alike = 0.85 < h * w / side**2 < 1.05 and 1 / 4 <= h / w <= 4
  if side < 512 or (alike and not (h % 64 or w % 64)):
    return ''
  return (
    'that SDXL was trained on, which have about the area of '
    f'{side} x {side}, sides that are multiples of 64, and 1 : 4 at most'
  )


def check_one_init(image, latents):
  if image is not None and latents is not None:
    raise ValueError('image and latents are both given: leave one out')


def check_strength(strength, given, mask):
  """The strength, by default what fits; an error without a picture."""
  if given is None:
    for name, value in (('strength', strength), ('mask', mask)):
      if value is not None:
        raise ValueError(f'{name} is given without an image: give one too')
    return None
  if strength is None:
    return 0.3 if mask is None else 1.0
  return strength


def check_prompts(prompts):
  if isinstance(prompts, str) or not len(prompts):
    raise ValueError(
      f'prompts is {prompts!r}; give a list with one string for each picture'
    )


def check_count(name, values, count):
  if values is not None and len(values) != count:
    raise ValueError(f'{len(values)} {name} for {count} prompts: give one each')
