"""Checks of what `generate` is called with, before anything is computed."""

import warnings
from typing import Any

import numpy as np

from sdxl_jax.data import buckets
from sdxl_jax.models import latent_scaling, sdxl
from sdxl_jax.sampling import pipelines

# Beyond the range of pixels, for images resized by other programs.
LARGEST_PIXEL = 2.0


class UntrainedSizeWarning(UserWarning):
  """Warns of an image size outside the training distribution."""


def is_inpainting_unet(model: sdxl.SDXL) -> bool:
  """Returns whether the UNet takes the mask and the masked image beside x."""
  return model.unet.in_channels == 2 * model.vae.latent_channels + 1


def uses_cfg(model: sdxl.SDXL, guidance_scale: float) -> bool:
  """Returns whether the unconditional branch is computed too.

  Distilled UNets with a guidance embedding take the scale as an input instead.
  """
  return guidance_scale > 1 and not model.unet.guidance_embed_dim


def check_prompts(prompts: Any) -> None:
  """Raises ValueError unless there is a list with at least one prompt."""
  if not isinstance(prompts, (list, tuple)) or not prompts:
    raise ValueError(
      f'prompts is {prompts!r}; pass a list with one string for each image'
    )


def check_texts(name: str, texts: Any) -> None:
  """Raises ValueError unless texts are strings, or None in place of all."""
  if texts is None:
    return
  if not isinstance(texts, (list, tuple)):
    raise ValueError(
      f'{name} is {texts!r}; pass a list with one string for each image'
    )
  for i, text in enumerate(texts):
    if not isinstance(text, str):
      raise ValueError(
        f'{name}[{i}] is {text!r}; pass a string, or None in place of the '
        'whole list'
      )
    check_characters(f'{name}[{i}]', text)


def check_characters(name: str, text: str) -> None:
  """Raises ValueError for text with halves of characters.

  Python writes bytes of a command line that are no text so, and JSON may have
  one as an escape.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{name} has half a character, {text[error.start]!a}, as character '
      f'{error.start + 1}: write it in UTF-8, or in JSON both halves of the '
      'pair'
    ) from None


def check_count(name: str, values: Any, count: int) -> None:
  """Raises ValueError unless there is one value for each of the prompts."""
  if values is not None and not hasattr(values, '__len__'):
    raise ValueError(f'{name} is {values!r}; pass a list with one per image')
  if values is not None and len(values) != count:
    raise ValueError(f'{len(values)} {name} for {count} prompts: pass one each')


def check_combined(weights: Any, guided: bool, interval: Any = None) -> None:
  """Raises ValueError where AND combines prompts that cannot be added up.

  Args:
    weights: [b, n] of prompt_plan.Plan.
    guided: whether there is guidance, which adds them up.
    interval: of SampleSettings; in steps outside they are averaged.
  """
  if weights is None:
    return
  if interval is not None and (weights.max(1) <= 0).any():
    raise ValueError(
      'steps outside of guidance_interval average the prompts that AND '
      'combines by their weights, and those of a prompt are all 0 or below: '
      'leave guidance_interval out, or give one of them a weight above 0'
    )
  if not guided:
    raise ValueError(
      'AND combines prompts by classifier-free guidance, which is off: pass a '
      'guidance_scale above 1 and a model that is not distilled with guidance, '
      'or leave AND out'
    )


def check_one_init(image: Any, latents: Any) -> None:
  """Raises ValueError where an image and latents are both to start from."""
  if image is not None and latents is not None:
    raise ValueError('image and latents are both given: leave one out')


def check_strength(strength: float | None, init: Any, mask: Any) -> None:
  """Raises ValueError for settings of an init image where there is none."""
  if init is not None:
    return
  for name, value in (('strength', strength), ('mask', mask)):
    if value is not None:
      raise ValueError(f'{name} is given without an image: pass one too')


def check_numbers(name: str, array: Any) -> None:
  """Raises ValueError for an array with NaN or infinity, or of no numbers."""
  if array is None:
    return
  try:
    array = np.asarray(array, np.float32)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{name} is no array of numbers: {error}') from None
  if not np.isfinite(array).all():
    count = np.count_nonzero(~np.isfinite(array))
    raise ValueError(
      f'{name} has {count} values that are not finite (NaN or infinity), of '
      f'{array.size}: mend what it was made by'
    )
  # Pixels of 0 to 255 would give noise.
  largest = np.abs(array).max(initial=0)
  if name == 'image' and largest > LARGEST_PIXEL:
    raise ValueError(
      f'image has values of up to {largest:g}; pixels are from -1 to 1: '
      'convert those of 0 to 255 with data.images.to_float'
    )


def check_mask(mask: Any, threshold: float) -> None:
  """Raises ValueError for a mask that is not of 0 to 1, or repaints nothing."""
  if mask is None:
    return
  mask = np.asarray(mask, np.float32)
  high = mask.max(initial=0)
  low = mask.min(initial=high)
  if low < 0 or high > 1:
    raise ValueError(
      f'mask has values from {low:g} to {high:g}; they must be from 0, keep, '
      'to 1, repaint'
    )
  if high < threshold:
    raise ValueError(
      f'mask is nowhere at or above mask_threshold, {threshold:g}, so nothing '
      f'would be repainted: its largest value is {high:g}'
    )


def check_unet(model: sdxl.SDXL, image: Any, mask: Any) -> None:
  """Raises ValueError for a UNet of another kind, or without its inputs."""
  channels, c = model.unet.in_channels, model.vae.latent_channels
  if channels != c and not is_inpainting_unet(model):
    raise ValueError(
      f'the UNet takes {channels} channels and the autoencoder has {c}: the '
      f'UNet must take {c}, or {2 * c + 1} for latents, mask and masked image'
    )
  if is_inpainting_unet(model) and (image is None or mask is None):
    raise ValueError(
      f'the UNet takes {channels} channels, as an inpainting model: pass image '
      'and mask, or use a base model'
    )


def check_refiner_matches_base(base: sdxl.SDXL, refiner: sdxl.SDXL) -> None:
  """Raises ValueError where a refiner cannot take over the base's latents."""
  if base.refiner or not refiner.refiner:
    raise ValueError(
      'refiner must be a refiner model, which has one text encoder, and '
      'pipeline a base model'
    )
  if base.schedule.is_continuous or refiner.schedule.is_continuous:
    raise ValueError(
      'a refiner takes over at a timestep, and a model of continuous noise '
      'levels (EDM) has none: leave the refiner out'
    )
  pairs = {
    name: (getattr(base.vae, name), getattr(refiner.vae, name))
    for name in latent_scaling.FIELDS
  }
  pairs['schedule'] = base.schedule, refiner.schedule
  pairs['channels'] = base.unet.out_channels, refiner.unet.in_channels
  for name, (of_base, of_refiner) in pairs.items():
    if of_base != of_refiner:
      raise ValueError(
        f'base and refiner do not fit together: {name} of the base is '
        f'{of_base}, of the refiner {of_refiner}'
      )


def check_size(
  size: tuple[int, int], pipeline: pipelines.Pipeline
) -> tuple[int, int]:
  """Returns (height, width) in px as ints; warns of untrained sizes.

  Raises:
    ValueError: for sides that the autoencoder cannot divide, with the nearest
      size that fits.
  """
  (h, w), factor = size, pipeline.model.vae.downscale
  if h < factor or w < factor or h % factor or w % factor:
    nearest = tuple(max(factor, round(s / factor) * factor) for s in size)
    raise ValueError(
      f'size {h} x {w} (height x width): both must be positive multiples of '
      f'{factor}; the nearest such size is {nearest[0]} x {nearest[1]}'
    )
  reason = describe_untrained_size((h, w), pipeline)
  if reason:
    warnings.warn(
      f'size {h} x {w} is none {reason}; images may be cropped, or show '
      'everything twice',
      UntrainedSizeWarning,
      stacklevel=4,  # the caller of generate
    )
  return int(h), int(w)


def describe_untrained_size(
  size: tuple[int, int], pipeline: pipelines.Pipeline
) -> str:
  """Explains why a size is outside the training distribution.

  Args:
    size: (height, width) in px.
    pipeline: has the buckets that a workdir was trained on.

  Returns:
    The end of the sentence 'the size is none ...', or '' for a trained size.
  """
  (h, w), side = size, pipeline.size[0]
  if size in pipeline.buckets:
    return ''
  if pipeline.buckets:
    nearest = pipeline.buckets[buckets.assign([size], pipeline.buckets)[0]]
    return f"of the run's buckets (the nearest is {nearest[0]} x {nearest[1]})"
  # The areas of the paper's 40 buckets (appendix I) are 88 to 100 %.
  is_like_a_bucket = 0.85 < h * w / side**2 < 1.05 and 1 / 4 <= h / w <= 4
  if side < 512 or (is_like_a_bucket and not (h % 64 or w % 64)):
    return ''
  return (
    'that SDXL was trained on, which have about the area of '
    f'{side} x {side}, sides that are multiples of 64, and 1 : 4 at most'
  )
