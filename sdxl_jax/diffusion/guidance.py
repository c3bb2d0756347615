"""Classifier-free guidance: predictions with and without the prompt."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Shaped


def classifier_free_guidance(
  net: Callable,
  guidance_scale: Float[ArrayLike, ''],
  guidance_rescale: Float[ArrayLike, ''] = 0.0,
  weights: Float[ArrayLike, 'b n'] | None = None,
) -> Callable:
  """Makes one guided net from a net over unconditional and conditional rows.

  Ho & Salimans 2022, in the weights of Imagen: 1 means no guidance. A caller
  that needs no guidance saves half of the work by passing the conditional net
  itself to `make_denoiser`.

  Args:
    net: (x, timestep) -> prediction over 2 b rows: for each image the
      unconditional row, then the conditional one, see `interleave_rows`; over
      (1 + n) b rows with `weights`.
    guidance_scale: how far to go from uncond towards cond; may be traced.
    guidance_rescale: see `rescale_guidance`; 0 for none; may be traced.
    weights: of each image's n conditional rows, see `combine_rows`.

  Returns:
    net: (x, timestep) -> prediction over b rows, float32.
  """

  def guided_net(
    x: Float[ArrayLike, 'b h w c'], timestep: Float[ArrayLike, ' b']
  ) -> Float[Array, 'b h w k']:
    # One call of the net for all predictions.
    count = 2 if weights is None else 1 + weights.shape[1]
    rows = net(
      interleave_rows([x] * count), interleave_rows([timestep] * count)
    )
    uncond, *conds = split_rows(rows.astype(jnp.float32), count)
    cond = conds[0] if weights is None else combine_rows(uncond, conds, weights)
    prediction = uncond + guidance_scale * (cond - uncond)
    return rescale_guidance(prediction, cond, guidance_rescale)

  return guided_net


# Liu et al. 2022, Compositional Visual Generation, equation 11.
def combine_rows(
  uncond: Float[ArrayLike, 'b h w c'],
  conds: Sequence[Float[ArrayLike, 'b h w c']],
  weights: Float[ArrayLike, 'b n'],
) -> Float[Array, 'b h w c']:
  """Returns uncond + sum_i weights_i (cond_i - uncond)."""
  weights = jnp.asarray(weights)[..., None, None, None]
  return uncond + sum(
    weights[:, i] * (cond - uncond) for i, cond in enumerate(conds)
  )


def average_net(net: Callable, weights: Float[ArrayLike, 'b n']) -> Callable:
  """Makes one net without guidance from a net over several conditional rows.

  Args:
    net: (x, timestep) -> prediction over n b rows, see `interleave_rows`.
    weights: of each image's n rows; those below 0, away from which guidance
      leads, are left out, so that at least one must be above.

  Returns:
    net: (x, timestep) -> the mean by weight over b rows, float32.
  """
  weights = jnp.maximum(jnp.asarray(weights), 0)
  shares = weights / weights.sum(1, keepdims=True)

  def averaged_net(
    x: Float[ArrayLike, 'b h w c'], timestep: Float[ArrayLike, ' b']
  ) -> Float[Array, 'b h w k']:
    count = shares.shape[1]
    rows = net(
      interleave_rows([x] * count), interleave_rows([timestep] * count)
    )
    conds = split_rows(rows.astype(jnp.float32), count)
    return sum(
      shares[:, i, None, None, None] * cond for i, cond in enumerate(conds)
    )

  return averaged_net


def interleave_rows(
  batches: Sequence[Shaped[ArrayLike, ' b *dims']],
) -> Shaped[Array, ' kb *dims']:
  """Stacks k batches to one of k b rows, with an image's rows side by side.

  All rows of an image then lie on one device where a batch is sharded.
  """
  return jnp.stack(batches, 1).reshape(-1, *batches[0].shape[1:])


def split_rows(
  rows: Shaped[ArrayLike, ' kb *dims'], count: int
) -> tuple[Shaped[ArrayLike, ' b *dims'], ...]:
  """Returns the batches; inverts `interleave_rows` of `count` of them."""
  rows = rows.reshape(-1, count, *rows.shape[1:])
  return tuple(rows[:, i] for i in range(count))


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
