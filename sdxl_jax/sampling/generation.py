"""Generates images from prompts: `generate`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sdxl_jax.diffusion import random_keys, sampling_schedule
from sdxl_jax.distributed import batch_padding
from sdxl_jax.models import sdxl
from sdxl_jax.sampling import (
  control_inputs,
  denoising_loop,
  finiteness,
  image_seeds,
  initial_latents,
  pipelines,
  prompt_encoding,
  prompt_plan,
  sampler_choice,
  settings,
  step_segments,
  vae_batches,
  validation,
)
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.weights.diffusers import scheduler_config


class Inputs(NamedTuple):
  """What differs between the images of a batch.

  Lists have one entry per image; arrays one for all, or one per image.
  """

  prompts: Sequence[str]
  negative_prompts: Sequence[str] | None = None  # None: no text at all
  prompts_2: Sequence[str] | None = None  # for OpenCLIP ViT-bigG alone
  negative_prompts_2: Sequence[str] | None = None
  seeds: Sequence[int] | None = None  # None: 0, 1, ...; -1: drawn
  image: Any = None  # float [h, w, 3] in [-1, 1] to start from
  latents: Any = None  # scaled [h/8, w/8, 4], in place of an image
  mask: Any = None  # float [h, w], 0 to 1: repaint from mask_threshold on
  init_noise: Any = None  # N(0, 1) [h/8, w/8, 4], in place of the seeds' own
  control: Any = None  # RGB [h, w, 3] in [0, 1] for each ControlNet
  control_types: Any = None  # of union nets, see control_specs.TYPES


TEXTS = prompt_plan.Prompts._fields


def generate(
  pipeline: pipelines.Pipeline,
  prompts: Sequence[str],
  *,
  refiner: pipelines.Pipeline | None = None,
  watch: Callable[[int, int, Callable[[], Any]], None] | None = None,
  watch_every: int = 1,
  warm_up: bool = False,
  **options: Any,
) -> tuple[Float[np.ndarray, 'b H W 3'], Float[np.ndarray, 'b h w c']]:
  """Generates one image per prompt, from noise or from another image.

  An image depends on weights, prompt, seed and settings, not on its batch nor
  on the devices that share the batch (the pipeline's mesh).

  Args:
    pipeline: base, or a refiner that starts from an image.
    prompts: one per image.
    refiner: takes over from the base, see refiner_start, refiner_strength.
    watch: called as watch(steps done, steps in all, preview) while sampling,
      when the next steps run already; preview() returns the images as the model
      predicts them at that step.
    watch_every: steps between two calls.
    warm_up: whether to compile all programs of such a call and take no step; no
      value of a prompt, seed, image or guidance changes them. The result is no
      image.
    **options: fields of `Inputs` (negative_prompts, seeds, image, mask, ...)
      and of `settings.SampleSettings` (steps, sampler, guidance_scale, ...).
      `size` stands for (height, width), and `negative_sizes` for a dict of
      original_size, crop_top_left and target_size of the unconditional branch.

  Returns:
    (images in [-1, 1], scaled latents).

  Raises:
    TypeError: for an option that does not exist.
    ValueError: for values that do not fit, with the limit and what to do.
    finiteness.NonFiniteError: for latents or images with NaN or infinity, with
      the step or the net where they began.
  """
  inputs, chosen = parse_options(prompts, options)
  chosen = resolve(pipeline, chosen)
  sampler_choice.advise(pipeline, chosen)
  check(pipeline, refiner, inputs, chosen)
  seeds = image_seeds.choose(inputs.seeds, len(prompts))
  size = choose_size(pipeline, inputs, chosen)
  schedule = make_schedule(pipeline, chosen, size)
  sampler_choice.advise_interval(pipeline, chosen, schedule)
  rows = batch_padding.Rows(pipeline.mesh, len(prompts))
  keys = rows.put(random_keys.make_keys(seeds))

  # Encode the init image and the prompts.
  init, noise = place_arrays(pipeline, rows, inputs, size, chosen)
  initial = initial_latents.make_initial_latents(
    pipeline, schedule, keys, size, init, noise
  )
  plan = prompt_plan.make_plan(
    prompt_plan.Prompts(*(rows.fill(getattr(inputs, n)) for n in TEXTS)),
    chosen,
    len(schedule.timesteps),
  )
  conditions = settings.micro_conditions(chosen, size)
  steps = range(initial.first_step, len(schedule.timesteps))
  controls = control_inputs.place(pipeline, rows, inputs, size, chosen, steps)
  experts = []
  for expert in filter(None, (pipeline, refiner)):
    conditioning = prompt_encoding.make_conditioning(
      expert, rows, plan, conditions, chosen
    )
    weights = None if plan.weights is None else rows.place(plan.weights)
    experts.append(
      denoising_loop.make_expert(
        expert,
        conditioning,
        weights,
        schedule,
        keys,
        initial,
        chosen,
        controls if expert is pipeline else None,
      )
    )

  # Denoise and decode.
  def decode(latents):
    return vae_batches.decode_all(pipeline, latents, chosen.tile)[: rows.count]

  segments = step_segments.plan_segments(
    schedule, initial.first_step, chosen, has_refiner=refiner is not None
  )
  watch_steps = watch and with_previews(watch, decode, pipeline.model)
  latents = denoising_loop.run(
    experts, segments, initial.x, watch_steps, watch_every, warm_up
  )
  samples = decode(latents), rows.fetch(latents)
  if not warm_up:  # noise may be beyond what the autoencoder can decode
    finiteness.check_samples(experts, segments, initial, samples)
  return samples


def with_previews(
  watch: Callable[[int, int, Callable[[], Any]], None],
  decode: Callable[[Any], Any],
  model: sdxl.SDXL,
) -> denoising_loop.Watch:
  """Makes the `watch` of the denoising loop from that of `generate`.

  Args:
    watch: takes steps done, steps in all, and a function that makes images.
    decode: latents -> images.
    model: that an error names.
  """

  def watch_steps(done, total, state, running):
    def preview():
      # The decoder may not fit into memory beside a step.
      running.x.block_until_ready()
      image = decode(state.denoised)
      finiteness.check_preview(image, state.denoised, done, model)
      return image

    watch(done, total, preview)

  return watch_steps


def resolve(pipeline: pipelines.Pipeline, chosen: Any) -> Any:
  """Returns settings with the pipeline's own sampler and tiles filled in.

  Args:
    pipeline: the base.
    chosen: SampleSettings, or a sample_request.Request.
  """
  chosen = sampler_choice.resolve(pipeline, chosen)
  if chosen.tile is None:
    chosen = dataclasses.replace(chosen, tile=pipeline.tile)
  return chosen


def place_arrays(
  pipeline: pipelines.Pipeline,
  rows: batch_padding.Rows,
  inputs: Inputs,
  size: tuple[int, int],
  chosen: SampleSettings,
) -> tuple[initial_latents.InitImage, Any]:
  """Places the arrays of the inputs on the devices that share the batch.

  Returns:
    What to start from, and the initial noise or None.

  Raises:
    ValueError: for arrays of another shape.
  """
  latent_shape = initial_latents.latent_shape(pipeline.model, size)
  init = initial_latents.InitImage(
    image=rows.put_each('image', inputs.image, (*size, 3)),
    latents=rows.put_each('latents', inputs.latents, latent_shape),
    mask=rows.put_each('mask', inputs.mask, size),
    strength=chosen.strength,
    mask_threshold=chosen.mask_threshold,
  )
  return init, rows.put_each('init_noise', inputs.init_noise, latent_shape)


def parse_options(
  prompts: Sequence[str], options: dict[str, Any]
) -> tuple[Inputs, SampleSettings]:
  """Splits the options of `generate` into its inputs and its settings.

  Raises:
    TypeError: for an option that does not exist.
  """
  options = dict(options)
  size = options.pop('size', None)
  if size is not None:
    try:
      options['height'], options['width'] = size
    except (TypeError, ValueError):
      raise ValueError(
        f'size is {size!r}; pass (height, width) in px'
      ) from None
  for name, value in (options.pop('negative_sizes', None) or {}).items():
    options[f'negative_{name}'] = value
  known = {*Inputs._fields[1:], *settings.FIELDS}
  for name in options:
    if name not in known:
      raise TypeError(
        f'generate has no option {name!r}; there are {sorted(known)}, size and '
        'negative_sizes'
      )
  per_image = {n: options.pop(n) for n in Inputs._fields if n in options}
  for name, value in options.items():
    if isinstance(value, list):  # of two numbers, as JSON has them
      options[name] = tuple(value)
  return Inputs(prompts, **per_image), SampleSettings(**options)


def check(
  pipeline: pipelines.Pipeline,
  refiner: pipelines.Pipeline | None,
  inputs: Inputs,
  chosen: SampleSettings,
) -> None:
  """Raises ValueError for inputs that do not fit the models or each other."""
  init = inputs.latents if inputs.image is None else inputs.image
  validation.check_prompts(inputs.prompts)
  for name in TEXTS:
    validation.check_texts(name, getattr(inputs, name))
  for name in (*TEXTS, 'seeds'):
    validation.check_count(name, getattr(inputs, name), len(inputs.prompts))
  validation.check_one_init(inputs.image, inputs.latents)
  validation.check_unet(pipeline.model, inputs.image, inputs.mask)
  validation.check_strength(chosen.strength, init, inputs.mask)
  for name in ('image', 'latents', 'mask', 'init_noise'):
    validation.check_numbers(name, getattr(inputs, name))
  validation.check_mask(inputs.mask, chosen.mask_threshold)
  control_inputs.check(pipeline, inputs, chosen.guess_mode)
  if refiner:
    validation.check_refiner_matches_base(pipeline.model, refiner.model)


def choose_size(
  pipeline: pipelines.Pipeline, inputs: Inputs, chosen: SampleSettings
) -> tuple[int, int]:
  """Returns (height, width) in px: as set, the init image's, or the model's.

  Raises:
    ValueError: for sides that the autoencoder cannot divide.
  """
  image, latents = inputs.image, inputs.latents
  default = (
    initial_latents.image_size(image, px=1)
    or initial_latents.image_size(latents, px=pipeline.model.vae.downscale)
    or pipeline.size
  )
  height = default[0] if chosen.height is None else chosen.height
  width = default[1] if chosen.width is None else chosen.width
  return validation.check_size((height, width), pipeline)


def make_schedule(
  pipeline: pipelines.Pipeline, chosen: SampleSettings, size: tuple[int, int]
) -> sampling_schedule.SamplingSchedule:
  """Returns the noise levels: those of the scheduler's config, but as set.

  Args:
    pipeline: with the scheduler's config.
    chosen: settings that name a sampler.
    size: (height, width) of the images in px.
  """
  trained, spacing = scheduler_config.read(pipeline.scheduler, chosen.sampler)
  if chosen.spacing is not None:
    spacing = dataclasses.replace(spacing, kind=chosen.spacing)
  if chosen.sigmas is not None:
    spacing = dataclasses.replace(spacing, sigmas=chosen.sigmas)
  return sampling_schedule.make_sampling_schedule(
    trained.at_size(*size),
    spacing,
    chosen.sampler,
    chosen.steps,
    chosen.eta,
  )
