"""The training loss: noises latents and compares eps, v, x0 or a flow.

All arithmetic is float32. The noise of an example depends on the key and on its
row of the global batch, not on the other examples.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from sdxl_jax.diffusion import (
  loss_kinds,
  loss_weights,
  noise_schedule,
  timestep_importance,
  timestep_sampling,
  training_noise,
)


def rates(
  schedule: noise_schedule.Schedule,
) -> tuple[Float[Array, ' timesteps'], Float[Array, ' timesteps']]:
  """Returns (signal, noise): sqrt(a) and sqrt(1 - a) of each timestep.

  For rectified flow 1 - t and t.
  """
  if schedule.is_flow:
    t = noise_schedule.times(schedule)
    return jnp.float32(1 - t), jnp.float32(t)
  a = noise_schedule.alphas_cumprod(schedule)
  return jnp.float32(np.sqrt(a)), jnp.float32(np.sqrt(1 - a))


# Ho et al. 2020, Denoising Diffusion Probabilistic Models, equation 4.
def add_noise(
  x0: Float[ArrayLike, 'b h w c'],
  eps: Float[ArrayLike, 'b h w c'],
  signal: Float[ArrayLike, 'b 1 1 1'],
  noise: Float[ArrayLike, 'b 1 1 1'],
) -> Float[ArrayLike, 'b h w c']:
  """Returns the noisy latents, of about unit variance."""
  return signal * x0 + noise * eps


# Salimans & Ho 2022, Progressive Distillation, appendix D.
def velocity(
  x0: Float[ArrayLike, 'b h w c'],
  eps: Float[ArrayLike, 'b h w c'],
  signal: Float[ArrayLike, 'b 1 1 1'],
  noise: Float[ArrayLike, 'b 1 1 1'],
) -> Float[ArrayLike, 'b h w c']:
  """Returns v."""
  return signal * eps - noise * x0


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """Describes the loss; by default squares, alike for all timesteps."""

  distance: loss_kinds.Distance = loss_kinds.Distance()
  weighting: loss_weights.Weighting = loss_weights.Weighting()
  timesteps: timestep_sampling.TimestepSampling = (
    timestep_sampling.TimestepSampling()
  )
  noise: training_noise.Noise = training_noise.Noise()


def sample_noise(
  key: PRNGKeyArray,
  row: Int[ArrayLike, ''],
  x0: Float[ArrayLike, 'h w c'],
  draw_timestep: Callable,
  noise: training_noise.Noise,
) -> tuple[Int[Array, ''], Float[Array, 'h w c'], Float[Array, 'h w c']]:
  """Samples the noise of the example in a row of the batch.

  Args:
    key: of the step.
    row: of the global batch.
    x0: latents of the example.
    draw_timestep: key -> timestep.
    noise: what is added to white noise.

  Returns:
    (timestep, eps, eps of the input): the last two are the same array unless
    the input is perturbed.
  """
  row_key = jax.random.fold_in(key, row)
  keys = jax.random.split(row_key, 3)
  timestep = draw_timestep(keys[0])
  eps = jax.random.normal(keys[1], x0.shape)
  # One number for each channel: it shifts the mean of the whole image.
  offset = jax.random.normal(keys[2], (1, 1, x0.shape[-1]))
  eps = eps + training_noise.offset_strength(noise, x0) * offset
  # Numbers above those of `split`, with which fold_in shares its keys.
  if noise.multires_noise_iterations:
    eps = training_noise.add_octaves(noise, jax.random.fold_in(row_key, 3), eps)
  input_eps = eps
  if noise.ip_noise_gamma:
    perturb_key = jax.random.fold_in(row_key, 4)
    input_eps = training_noise.perturb_input(noise, perturb_key, eps)
  return timestep, eps, input_eps


def diffusion_loss(
  net: Callable,
  latents: Float[ArrayLike, 'b h w c'],
  key: PRNGKeyArray,
  schedule: noise_schedule.Schedule,
  settings: LossSettings = LossSettings(),
  mask: Float[ArrayLike, 'b h w'] | None = None,
  history: Float[ArrayLike, '2 parts'] | None = None,
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """Returns the mean over the batch of each example's weighted error.

  Args:
    net: (x, timestep) -> prediction; x is float32 [b, h, w, c], timestep int32
      [b], or float32 for rectified flow; the prediction is schedule.prediction,
      in any float type.
    latents: scaled, see latent_scaling.
    key: of this step.
    schedule: noise schedule of the net.
    settings: error, weights, timesteps and noise.
    mask: 0..1, by which the error of each position is multiplied before the
      mean over all positions; None: 1.
    history: of timestep_importance, where timesteps are drawn by it.

  Returns:
    (loss, metrics): metrics has the loss and the unweighted squared error, mse;
    and `measured`, of timestep_importance, where it draws.

  Raises:
    ValueError: for a range of timesteps that the schedule does not have.
  """
  # Noise: a timestep and eps for each example.
  x0 = latents.astype(jnp.float32)
  limits = settings.timesteps.limits(schedule.num_train_timesteps)
  count, table = limits[1] - limits[0], None
  if settings.timesteps.by_importance:
    table = timestep_importance.probabilities(history, count)
  elif not settings.timesteps.is_uniform:
    table = timestep_sampling.probabilities(settings.timesteps, count)
  sample_row = functools.partial(
    sample_noise,
    key,
    draw_timestep=functools.partial(
      timestep_sampling.sample, limits=limits, table=table
    ),
    noise=settings.noise,
  )
  timestep, eps, input_eps = jax.vmap(sample_row)(jnp.arange(len(x0)), x0)

  # Predict from the noisy latents.
  signal, noise = (r[timestep, None, None, None] for r in rates(schedule))
  targets = {
    'eps': eps,
    'v': velocity(x0, eps, signal, noise),
    'x0': x0,
    'flow': eps - x0,
  }
  target = targets[schedule.prediction]
  prediction = net(
    add_noise(x0, input_eps, signal, noise), net_timestep(schedule, timestep)
  )

  # Compare, and weigh each example's error by its signal-to-noise ratio.
  difference = prediction.astype(jnp.float32) - target
  error, mse = errors(
    difference, settings.distance, timestep, noise / signal, schedule, mask
  )
  weight = 1.0
  if settings.weighting.chosen:
    snr = jnp.square(signal / noise)[:, 0, 0, 0]
    weight = loss_weights.weight(settings.weighting, snr, schedule.prediction)
  weighted, measured = weight * error, {}
  if settings.timesteps.by_importance:
    index = timestep - limits[0]
    measured['measured'] = timestep_importance.measure(weighted, index, count)
    weighted = weighted / (count * table[index])
  loss = weighted.mean()
  return loss, {'loss': loss, 'mse': mse.mean(), **measured}


def net_timestep(
  schedule: noise_schedule.Schedule, timestep: Int[Array, ' b']
) -> Array:
  """Returns the net's input at timesteps: for rectified flow 1000 t."""
  if not schedule.is_flow:
    return timestep
  times = noise_schedule.times(schedule) * schedule.num_train_timesteps
  return jnp.float32(times)[timestep]


def errors(
  difference: Float[Array, 'b h w c'],
  distance: loss_kinds.Distance,
  timestep: Int[Array, ' b'],
  sigma: Float[Array, 'b 1 1 1'],
  schedule: noise_schedule.Schedule,
  mask: Float[ArrayLike, 'b h w'] | None,
) -> tuple[Float[Array, ' b'], Float[Array, ' b']]:
  """Returns (error, mse) of each example, both masked, not weighted."""
  c = None
  if distance.loss_type in loss_kinds.WITH_C:
    c = loss_kinds.huber_constant(
      distance, timestep, sigma[:, 0, 0, 0], schedule.num_train_timesteps
    )[:, None, None, None]

  def mean(loss_type):
    values = loss_kinds.pointwise(loss_type, difference, c)
    if mask is not None:
      values = values * mask[..., None]
    return values.mean(axis=(1, 2, 3))

  mse = mean('l2')
  return mse if distance.loss_type == 'l2' else mean(distance.loss_type), mse
