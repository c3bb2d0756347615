"""Where a run starts: from noise, from a picture, or from one part of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KnownRegion(NamedTuple):
  """A picture of which a run repaints one part, as inpainting does."""

  latents: jax.Array  # [b, h, w, c]
  noise: jax.Array  # [b, h, w, c], by which the rest is as noisy as x
  mask: jax.Array  # [b, h, w, 1]; 1 where to repaint, 0 where to keep
  start: jax.Array  # [], sigma of the first step, which sees x as it is


def first_step(steps, strength):
  """How many of a run's steps are left out for a share of the way.

  Raises:
    ValueError: for a strength outside of 0..1, or one that leaves no step.
  """
  if not 0 <= strength <= 1:
    raise ValueError(f'strength is {strength}; it must be from 0 to 1')
  taken = int(steps * strength)
  if not taken:
    raise ValueError(
      f'strength {strength} takes none of {steps} steps, and would give the '
      f'picture back; give at least {1 / steps:.2g}, or more steps'
    )
  return steps - taken


# Meng et al. 2022, SDEdit, algorithm 1.
def from_latents(latents, noise, levels, first):
  """Latents made as noisy as a run is at its step `first`."""
  return latents + levels.sigmas[first] * noise


def inpainting_denoiser(denoise, kept):
  """A denoiser that sees the kept part as it is at each noise level."""

  def inpaint(x, sigma):
    known = kept.latents + sigma * kept.noise
    mixed = kept.mask * x + (1 - kept.mask) * known
    return denoise(jnp.where(sigma < kept.start, mixed, x), sigma)

  return inpaint


def to_latent_mask(mask, downscale):
  """Mask [b, h, w], 0..1 > [b, h / 8, w / 8, 1] of 0 and 1, from 0.5 on."""
  picked = mask[:, ::downscale, ::downscale, None]
  return (jnp.asarray(picked) >= 0.5).astype(jnp.float32)
