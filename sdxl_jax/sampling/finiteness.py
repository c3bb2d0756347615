"""Finds where values that are not finite began: NaN, or infinity.

Nothing is computed for it while sampling. Where latents or images are not
finite, the same programs take the steps once more, one by one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdxl_jax.diffusion import samplers
from sdxl_jax.distributed import multihost
from sdxl_jax.models import sdxl
from sdxl_jax.sampling import denoising_loop, initial_latents, step_segments

WHAT = 'values that are not finite (NaN or infinity)'
NETS = 'UNet', 'UNet of the refiner'  # by Segment.model_index


class NonFiniteError(ValueError):
  """NaN or infinity in latents or images, which nothing can show."""


class Begun(Exception):
  """Ends the steps at the first that is not finite; holds the reason."""


def is_finite(array: Any) -> bool:
  """Returns whether all values of an array are finite."""
  array = np.asarray(multihost.fetch(array), np.float32)
  return bool(np.isfinite(array).all())


def check_samples(
  experts: list[denoising_loop.Expert],
  segments: list[step_segments.Segment],
  initial: initial_latents.InitialLatents,
  samples: tuple[np.ndarray, np.ndarray],
) -> None:
  """Checks that images and latents are finite.

  Args:
    experts: base and, if there is one, refiner.
    segments: that they took.
    initial: latents that the first segment began with.
    samples: (images, latents), each [count, ...].

  Raises:
    NonFiniteError: unless they are, with the images that are not, where it
      began, and what to do.
  """
  rows = [np.isfinite(x).all(axis=(1, 2, 3)) for x in samples]
  finite = np.logical_and(*rows)
  if finite.all():
    return
  begin = find_begin(experts, segments, initial)
  if begin is None:
    begin = describe_decoder(experts[0].pipeline.model)
  bad = ', '.join(str(i + 1) for i in np.flatnonzero(~finite))
  raise NonFiniteError(
    f'image {bad} of {len(finite)} has {WHAT} and cannot be shown. {begin}'
  )


def check_preview(
  image: np.ndarray, denoised: Any, done: int, model: sdxl.SDXL
) -> None:
  """Raises NonFiniteError for a preview after `done` steps that is not finite.

  Args:
    image: [b, H, W, 3], decoded.
    denoised: [b, h, w, c], its latents.
    done: steps taken.
    model: base.
  """
  if np.isfinite(image).all():
    return
  if is_finite(denoised):
    reason = describe_decoder(model)
  else:
    reason = (
      f'The latents of step {done}, or of one before, are not finite: '
      f'{unet_remedy(model)}'
    )
  raise NonFiniteError(f'a preview has {WHAT} and cannot be shown. {reason}')


def check_reconstructions(arrays: Sequence[np.ndarray]) -> None:
  """Checks what an autoencoder makes of images: reconstructions, metrics.

  Args:
    arrays: [b, ...] each.

  Raises:
    NonFiniteError: for NaN or infinity.
  """
  bad = sum((~np.isfinite(x).reshape(len(x), -1).all(1) for x in arrays), 0)
  count = np.count_nonzero(bad)
  if count:
    raise NonFiniteError(
      f'{count} of {len(arrays[0])} reconstructions have {WHAT}: check the '
      'weights of the autoencoder, or take those of an earlier step'
    )


def find_begin(
  experts: list[denoising_loop.Expert],
  segments: list[step_segments.Segment],
  initial: initial_latents.InitialLatents,
) -> str | None:
  """Describes where it began, before the decoder; None: it did not."""
  for expert in experts:
    # Of each stage, since a text may begin at a later step.
    conditioning = jax.tree.leaves([made for _, made in expert.stages])
    if not all(map(is_finite, conditioning)):
      model = expert.pipeline.model
      return f'They came from the text encoders: {weights_remedy(model)}'
  known = initial.known.latents if initial.known else None
  for array in (initial.x, known, initial.concat_channels):
    if array is not None and not is_finite(array):
      model = experts[0].pipeline.model
      return (
        'They came from the encoder of the autoencoder: '
        f'{autoencoder_remedy(model)}'
      )
  return find_step(experts, segments, initial)


def find_step(
  experts: list[denoising_loop.Expert],
  segments: list[step_segments.Segment],
  initial: initial_latents.InitialLatents,
) -> str | None:
  """Takes the steps again and describes the first that is not finite."""
  # Which net takes each of the steps.
  takers = [s.model_index for s in segments for _ in range(s.steps)]

  def check(done, total, state: samplers.SamplerState, running):
    del running
    index = takers[done - 1]
    step = f'They began in step {done} of {total}'
    remedy = unet_remedy(experts[index].pipeline.model)
    if not is_finite(state.denoised):
      more = ' or a ControlNet' if experts[index].controls else ''
      raise Begun(f'{step}, in the {NETS[index]}{more}: {remedy}')
    if not is_finite(state.x):
      raise Begun(f'{step}, in the sampler: choose another, or more steps')

  try:
    latents = denoising_loop.run(experts, segments, initial.x, check)
  except Begun as begun:
    return str(begun)
  if is_finite(latents):
    return None
  return 'They began after the last step: choose another sampler'


def weights_remedy(model: sdxl.SDXL) -> str:
  """Returns what to do about a UNet or text encoders that are not finite."""
  text = 'check the weights and LoRA files, or lower the weights of the LoRAs'
  return other_dtype('dtype', model.unet.dtype) + text


def unet_remedy(model: sdxl.SDXL) -> str:
  """Returns what to do about steps that are not finite."""
  return f'{weights_remedy(model)} and --guidance_scale'


def autoencoder_remedy(model: sdxl.SDXL) -> str:
  """Returns what to do about an autoencoder that is not finite."""
  text = (
    'pass another one with --vae, such as sdxl-vae-fp16-fix, or check its '
    'weights'
  )
  return other_dtype('vae_dtype', model.vae.dtype) + text


def other_dtype(flag: str, dtype: str) -> str:
  """Returns the beginning of a remedy: a type of more range or digits."""
  if dtype == 'float32':
    return ''
  if dtype == 'float16':
    return (
      f'pass --{flag} bfloat16 or float32 in place of float16, which ends at '
      '65504, or '
    )
  return f'pass --{flag} float32 in place of {dtype}, or '


def describe_decoder(model: sdxl.SDXL) -> str:
  """Describes images that are not finite where their latents are."""
  return (
    'They came from the decoder of the autoencoder, since the latents are '
    f'finite: {autoencoder_remedy(model)}'
  )
