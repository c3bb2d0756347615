"""Checks all requests of a command before the first image is sampled."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from sdxl_jax.diffusion import img2img, sampler_traits
from sdxl_jax.sampling import (
  control_images,
  control_inputs,
  generation,
  init_images,
  pipelines,
  prompt_encoding,
  prompt_plan,
  sample_request,
  sampler_choice,
  settings,
  step_segments,
  validation,
)
from sdxl_jax.sampling.located import Located, naming
from sdxl_jax.text import prompt_brackets, prompt_tags, prompt_weighting

# (height, width) where no weights are read; an image has its own.
UNKNOWN_SIZE = 8, 8


def before_loading(
  located: Sequence[Located], models: dict[str, Any]
) -> list[str]:
  """Checks requests as far as it goes without a model.

  Args:
    located: the requests.
    models: {flag: value} of the models.

  Returns:
    Lines for the user on what of the prompts is read otherwise than it may be
    meant, or left out.

  Raises:
    ValueError, OSError: with the location of a value that does not fit.
  """
  lines, read = {}, set()
  for place in located:
    request = place.request
    with naming(place.location):
      check_values(request)
      # Each image and mask is read once.
      files = init_images.files_of(request)
      if files not in read:
        read.add(files)
        init_images.load(files, UNKNOWN_SIZE)
      control_inputs.check_count(
        len(models.get('controlnet') or ()),
        len(request.control),
        request.guess_mode,
      )
      if request.control not in read:
        read.add(request.control)
        control_images.check(request.control)
      for message in check_prompts(request, models):
        lines[place.line(message)] = None
  return list(lines)


def check_values(request: sample_request.Request) -> None:
  """Raises ValueError for a value that no model can take."""
  for name, field in sample_request.FIELDS.items():
    value = getattr(request, name)
    settings.check_limits(field, value)
    sample_request.check_value(name, value)
    if value == '' and name in ('image', 'mask'):
      raise ValueError(f'{name} is empty: name a file, or leave it out')
  if request.sampler is not None:
    sampler_traits.check_eta(request.sampler, request.eta)
  validation.check_strength(request.strength, request.image, request.mask)


def check_prompts(
  request: sample_request.Request, models: dict[str, Any]
) -> list[str]:
  """Returns messages on the prompts of a request.

  Raises:
    ValueError: for prompts that cannot be read.
  """
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    # What the tags of files mean for it.
    texts = {}
    for name in prompt_plan.REQUEST_FIELDS:
      text = getattr(request, name)
      if text is None:
        continue
      texts[name], loras = prompt_tags.take_loras(text)
      prompt_tags.warn_of_lost_tags(text)
      negative = name.startswith('negative')
      for lora in loras if negative or not models.get('lora_dir') else ():
        remedy = (
          'it belongs into the prompt'
          if negative
          else 'pass the folder of its file as --lora_dir'
        )
        prompt_brackets.warn_of(f'{lora.tag} is left out: {remedy}')
      syntax = request.prompt_syntax if request.weighted_prompts else None
      prompt_tags.warn_of_text(texts[name], syntax)
    # All texts that are encoded.
    request = dataclasses.replace(request, **texts)
    plan = prompt_plan.make_plan(
      prompt_plan.prompts_of(request), request, request.steps
    )
    if request.weighted_prompts:
      for branch in plan.branches:
        for text in (*branch.texts, *(branch.texts_2 or ())):
          prompt_weighting.split_at_breaks(text, request.prompt_syntax)
  messages = [
    str(warning.message)
    for warning in caught
    if issubclass(warning.category, prompt_brackets.PromptSyntaxWarning)
  ]
  return list(dict.fromkeys(messages))


def after_loading(
  located: Sequence[Located],
  pipeline: pipelines.Pipeline,
  refiner: pipelines.Pipeline | None,
) -> list[str]:
  """Checks requests against the models, before the first image is sampled.

  Returns:
    Lines for the user on embeddings that prompts name, and that are not loaded.

  Raises:
    ValueError: with the location of a value that does not fit.
  """
  checked, lines, load = set(), {}, init_images.cached_load()
  for place in located:
    request = place.request
    key = dataclasses.replace(request, seed=0)
    if key in checked:
      continue
    checked.add(key)
    # `generate` warns later.
    with naming(place.location), warnings.catch_warnings():
      warnings.simplefilter('ignore')
      check_with(request, pipeline, refiner, load)
    for (text,) in filter(None, prompt_plan.prompts_of(request)):
      known = pipeline.tokenize.embeddings
      for name in prompt_tags.unknown_embeddings(text, known):
        message = (
          f'{name!r} in the prompt {text!r} is read as words: pass its file as '
          '--embedding'
        )
        lines[place.line(message)] = None
  return list(lines)


def check_with(
  request: sample_request.Request,
  pipeline: pipelines.Pipeline,
  refiner: pipelines.Pipeline | None,
  load: Callable[..., dict[str, Any]],
) -> None:
  """Raises ValueError for a request that `generate` would refuse.

  Args:
    request: of one image.
    pipeline: base, or a refiner that starts from an image.
    refiner: that takes over from the base, or None.
    load: init_images.load, or a function of its kind.
  """
  kwargs = sample_request.to_generate_kwargs([request], pipeline.size, load)
  inputs, chosen = generation.parse_options(kwargs.pop('prompts'), kwargs)
  chosen = sampler_choice.resolve(pipeline, chosen)
  generation.check(pipeline, refiner, inputs, chosen)
  size = generation.choose_size(pipeline, inputs, chosen)
  schedule = generation.make_schedule(pipeline, chosen, size)
  steps, first = len(schedule.timesteps), 0
  if inputs.image is not None:
    strength = img2img.strength_of(chosen.strength, inputs.mask)
    first = img2img.first_step(steps, strength)
  step_segments.plan_segments(
    schedule, first, chosen, has_refiner=refiner is not None
  )
  plan = prompt_plan.make_plan(prompt_plan.prompts_of(request), chosen, steps)
  for expert in filter(None, (pipeline, refiner)):
    guided = validation.uses_cfg(expert.model, chosen.guidance_scale)
    validation.check_combined(plan.weights, guided, chosen.guidance_interval)
    expert.model.text.check_clip_skip(chosen.clip_skip)
    prompt_encoding.tokenize_branches(
      expert.tokenize, plan.branches, chosen, expert.text_chunks
    )
