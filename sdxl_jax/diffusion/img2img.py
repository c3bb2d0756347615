"""Image-to-image and inpainting: runs that start from a noised image."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from sdxl_jax.diffusion import sampling_schedule


class KnownRegion(NamedTuple):
  """An image of which inpainting repaints one part and keeps the rest."""

  latents: jax.Array  # [b, h, w, c]
  noise: jax.Array  # [b, h, w, c], which noises the known part like x
  mask: jax.Array  # [b, h, w, 1]; 1 where to repaint, 0 where to keep
  start: jax.Array  # [], sigma of the first step, at which x stays as it is


def strength_of(strength: float | None, mask: object) -> float:
  """Returns the strength as set, or 0.3, or 1.0 with a mask."""
  if strength is not None:
    return strength
  return 0.3 if mask is None else 1.0


def first_step(steps: int, strength: float) -> int:
  """Returns the number of steps to skip for a strength of 0..1.

  Raises:
    ValueError: for a strength outside of 0..1, or one that leaves no step.
  """
  if not 0 <= strength <= 1:
    raise ValueError(f'strength is {strength}; it must be from 0 to 1')
  taken = int(steps * strength)
  if not taken:
    raise ValueError(
      f'strength {strength} takes none of {steps} steps and would return the '
      f'image unchanged; pass at least {1 / steps:.2g}, or more steps'
    )
  return steps - taken


# Meng et al. 2022, SDEdit, algorithm 1.
def from_latents(
  latents: Float[ArrayLike, 'b h w c'],
  noise: Float[ArrayLike, 'b h w c'],
  schedule: sampling_schedule.SamplingSchedule,
  first: int,
) -> Float[ArrayLike, 'b h w c']:
  """Noises latents to the sigma of the step `first`."""
  return latents + schedule.sigmas[first] * noise


# Lugmayr et al. 2022, RePaint, equation 8, at the sigma of each step.
def inpainting_denoiser(denoise: Callable, known: KnownRegion) -> Callable:
  """Makes a denoiser whose input is replaced by the noised known region."""

  def inpaint(
    x: Float[ArrayLike, 'b h w c'], sigma: Float[ArrayLike, '']
  ) -> Float[ArrayLike, 'b h w c']:
    noised = known.latents + sigma * known.noise
    mixed = known.mask * x + (1 - known.mask) * noised
    return denoise(jnp.where(sigma < known.start, mixed, x), sigma)

  return inpaint


def to_latent_mask(
  mask: Num[ArrayLike, 'b height width'],
  downscale: int,
  threshold: float = 0.5,
) -> Float[Array, 'b h w 1']:
  """Returns the mask at the size of the latents: 1 to repaint, 0 to keep.

  A pixel of the latents is repainted if the mask is at or above the threshold
  in any pixel that it covers, so that thin lines do not fall between points.

  Args:
    mask: 0 to 1, of the size of the images.
    downscale: px that a pixel of the latents covers in each direction.
    threshold: above 0 to 1.
  """
  b, height, width = mask.shape
  cells = b, height // downscale, downscale, width // downscale, downscale
  largest = jnp.asarray(mask).reshape(cells).max((2, 4))
  return (largest >= threshold).astype(jnp.float32)[..., None]
