"""The training loss: noises latents and compares eps, v or x0.

All arithmetic is float32. The noise of an example depends on the key and on its
row of the global batch, not on the other examples.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from sdxl_jax.diffusion import noise_schedule


def rates(
  schedule: noise_schedule.Schedule,
) -> tuple[Float[Array, ' timesteps'], Float[Array, ' timesteps']]:
  """Returns (signal, noise): sqrt(a) and sqrt(1 - a) of each timestep."""
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


# Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting.
def min_snr_weight(
  snr: Float[ArrayLike, ' b'], gamma: Float[ArrayLike, ''], prediction: str
) -> Float[Array, ' b']:
  """Returns the weight of the error in the prediction.

  It is min(snr, gamma) for the error in x0, converted to the prediction. It is
  finite at zero terminal SNR, where v and x0 have no weight.
  """
  return {
    'eps': jnp.minimum(1, gamma / snr),
    'v': jnp.minimum(snr, gamma) / (snr + 1),
    'x0': jnp.minimum(snr, gamma),
  }[prediction]


def sample_noise(
  key: PRNGKeyArray,
  row: Int[ArrayLike, ''],
  shape: Sequence[int],
  timestep_range: tuple[int, int],
) -> tuple[Int[Array, ''], Float[Array, 'h w c'], Float[Array, '1 1 c']]:
  """Samples (timestep, eps, offset) of the example in a row of the batch."""
  keys = jax.random.split(jax.random.fold_in(key, row), 3)
  timestep = jax.random.randint(keys[0], (), *timestep_range)
  eps = jax.random.normal(keys[1], shape)
  # One number for each channel: it shifts the mean of the whole image.
  offset = jax.random.normal(keys[2], (1, 1, shape[-1]))
  return timestep, eps, offset


def diffusion_loss(
  net: Callable,
  latents: Float[ArrayLike, 'b h w c'],
  key: PRNGKeyArray,
  schedule: noise_schedule.Schedule,
  *,
  timestep_range: tuple[int, int] | None = None,
  offset_noise: float = 0.0,
  min_snr_gamma: Float[ArrayLike, ''] | None = None,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Returns the mean over the batch of each example's weighted squared error.

  Args:
    net: (x, timestep) -> prediction; x is float32 [b, h, w, c], timestep int32
      [b]; the prediction is schedule.prediction, in any float type.
    latents: scaled, see latent_scaling.
    key: of this step.
    schedule: noise schedule of the net.
    timestep_range: (low, high), timesteps are uniform in low <= t < high; by
      default all of the schedule. SDXL's refiner was trained on (0, 200).
    offset_noise: standard deviation of the noise that is added to all pixels
      of a channel alike; 0.05 in SDXL's last stage.
    min_snr_gamma: caps the weight of easy timesteps (5 is usual); None for
      the same weight at all timesteps.

  Returns:
    (loss, metrics): metrics has the loss and the unweighted error, mse.
  """
  low, high = timestep_range or (0, schedule.num_train_timesteps)
  if not 0 <= low < high <= schedule.num_train_timesteps:
    raise ValueError(
      f'timestep_range is {(low, high)}; it must ascend and lie within 0 and '
      f'{schedule.num_train_timesteps}'
    )

  # Noise: a timestep and eps for each example.
  x0 = latents.astype(jnp.float32)
  sample_row = functools.partial(
    sample_noise, key, shape=x0.shape[1:], timestep_range=(low, high)
  )
  timestep, eps, offset = jax.vmap(sample_row)(jnp.arange(len(x0)))
  eps = eps + offset_noise * offset

  # Predict from the noisy latents.
  signal, noise = (r[timestep, None, None, None] for r in rates(schedule))
  targets = {'eps': eps, 'v': velocity(x0, eps, signal, noise), 'x0': x0}
  target = targets[schedule.prediction]
  prediction = net(add_noise(x0, eps, signal, noise), timestep)

  # Weigh each example's error by its signal-to-noise ratio.
  error = jnp.square(prediction.astype(jnp.float32) - target)
  mse = error.mean(axis=(1, 2, 3))
  weight = 1.0
  if min_snr_gamma is not None:
    snr = jnp.square(signal / noise)[:, 0, 0, 0]
    weight = min_snr_weight(snr, min_snr_gamma, schedule.prediction)
  loss = (weight * mse).mean()
  return loss, {'loss': loss, 'mse': mse.mean()}
