"""Classifier-free guidance: two predictions, with and without the prompt."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped


def classifier_free_guidance(
  net: Callable,
  guidance_scale: Float[ArrayLike, ''],
  guidance_rescale: Float[ArrayLike, ''] = 0.0,
) -> Callable:
  """Makes one guided net from a net over unconditional and conditional rows.

  Ho & Salimans 2022, in the weights of Imagen: 1 means no guidance. A caller
  that needs no guidance saves half of the work by passing the conditional net
  itself to `make_denoiser`.

  Args:
    net: (x, timestep) -> prediction over 2 b rows: for each image the
      unconditional row, then the conditional one, see `interleave_pairs`.
    guidance_scale: how far to go from uncond towards cond; may be traced.
    guidance_rescale: see `rescale_guidance`; 0 for none; may be traced.

  Returns:
    net: (x, timestep) -> prediction over b rows, float32.
  """

  def guided_net(
    x: Float[ArrayLike, 'b h w c'], timestep: Float[ArrayLike, ' b']
  ) -> Float[Array, 'b h w k']:
    # One call of the net for both predictions.
    both = net(interleave_pairs(x, x), interleave_pairs(timestep, timestep))
    uncond, cond = split_pairs(both.astype(jnp.float32))
    prediction = uncond + guidance_scale * (cond - uncond)
    return rescale_guidance(prediction, cond, guidance_rescale)

  return guided_net


def interleave_pairs(
  uncond: Shaped[ArrayLike, ' b *dims'], cond: Shaped[ArrayLike, ' b *dims']
) -> Shaped[Array, ' b2 *dims']:
  """Stacks two batches to one of b2 = 2 b, with an image's rows side by side.

  Both rows of an image then lie on one device where a batch is sharded.
  """
  return jnp.stack([uncond, cond], 1).reshape(-1, *uncond.shape[1:])


def split_pairs(
  both: Shaped[ArrayLike, ' b2 *dims'],
) -> tuple[Shaped[ArrayLike, ' b *dims'], Shaped[ArrayLike, ' b *dims']]:
  """Returns (uncond, cond); inverts `interleave_pairs`."""
  both = both.reshape(-1, 2, *both.shape[1:])
  return both[:, 0], both[:, 1]


# Lin et al. 2023, Common Diffusion Noise Schedules, equations 15 and 16.
def rescale_guidance(
  prediction: Float[ArrayLike, 'b h w c'],
  cond: Float[ArrayLike, 'b h w c'],
  phi: Float[ArrayLike, ''],
) -> Float[Array, 'b h w c']:
  """Moves each image's standard deviation by a share phi back to cond's."""
  axes = tuple(range(1, cond.ndim))
  std_cond = jnp.std(cond, axes, ddof=1, keepdims=True)
  std = jnp.std(prediction, axes, ddof=1, keepdims=True)
  # A net that is still zero everywhere must not become NaN.
  rescaled = prediction * (std_cond / jnp.maximum(std, 1e-20))
  return phi * rescaled + (1 - phi) * prediction
