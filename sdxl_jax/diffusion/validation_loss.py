"""The loss of validation: squared errors at evenly spaced timesteps.

The timesteps are those of MLPerf Training 5.1, text to image, after Esser et
al. 2024: k / 8 of all for k = 0 to 7; the loss is the mean over them. MLPerf
gives each of its 29,696 images one timestep; here each image has all eight,
since few images are used.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, UInt32

from sdxl_jax.diffusion import (
  loss_kinds,
  losses,
  noise_schedule,
  timestep_sampling,
)


def timesteps(
  sampling: timestep_sampling.TimestepSampling,
  num_train_timesteps: int,
  count: int,
) -> list[int]:
  """Returns the first timestep of each of `count` equal parts of the range.

  Args:
    sampling: of training; its range alone counts.
    num_train_timesteps: of the schedule.
    count: at most the timesteps of the range.
  """
  low, high = sampling.limits(num_train_timesteps)
  return [low + (high - low) * k // count for k in range(count)]


def row_keys(hashes: UInt32[ArrayLike, 'b 2']) -> Key[Array, ' b']:
  """Returns the keys [b] of examples from the halves of their hashes."""

  def make(halves):
    key = jax.random.key(0)
    for half in halves:
      key = jax.random.fold_in(key, half)
    return key

  return jax.vmap(make)(hashes)


def posterior_noise(
  keys: Key[Array, ' b'], shape: tuple[int, int, int]
) -> Float[Array, 'b h w c']:
  """Returns the noise by which latents are sampled, of each example's key."""
  # A number beyond all timesteps, see `squared_errors`.
  number = jnp.uint32(2**32 - 1)
  return jax.vmap(
    lambda key: jax.random.normal(jax.random.fold_in(key, number), shape)
  )(keys)


def squared_errors(
  net: Callable,
  latents: Float[ArrayLike, 'b h w c'],
  keys: Key[Array, ' b'],
  at: list[int],
  schedule: noise_schedule.Schedule,
  settings: losses.LossSettings,
  mask: Float[ArrayLike, 'b h w'] | None = None,
) -> Float[Array, 'timesteps b']:
  """Returns the mean squared error of each example at each timestep.

  It is training's metric `mse`: of the net's own prediction, masked, with noise
  as training adds it, and without a weight.

  Args:
    net: as losses.diffusion_loss has it.
    latents: scaled, see latent_scaling.
    keys: [b], of the examples; the noise depends on key and timestep.
    at: the timesteps.
    schedule: noise schedule of the net.
    settings: of training; distance, weights and timesteps do not count.
    mask: see losses.diffusion_loss.
  """
  x0 = jnp.asarray(latents, jnp.float32)
  signals, noises = losses.rates(schedule)
  distance = loss_kinds.Distance()  # squares

  def at_one(timestep):
    _, eps, input_eps = jax.vmap(
      lambda key, x: losses.sample_noise(
        key, timestep, x, lambda _: timestep, settings.noise
      )
    )(keys, x0)
    several = jnp.full(len(x0), timestep)
    signal, noise = (r[several, None, None, None] for r in (signals, noises))
    target = losses.target_of(schedule.prediction, x0, eps, signal, noise)
    prediction = net(
      losses.add_noise(x0, input_eps, signal, noise),
      losses.net_timestep(schedule, several),
    )
    difference = prediction.astype(jnp.float32) - target
    _, mse = losses.errors(
      difference, distance, several, noise / signal, schedule, mask
    )
    return mse

  # One timestep after another: the net is compiled once.
  return jax.lax.map(at_one, jnp.array(at, jnp.int32))
