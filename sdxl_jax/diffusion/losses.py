"""The training loss: noise the latents and ask the net for eps, v or x0.

All of it is float32. What happens to an example depends on the key and on its
row of the global batch, not on the other examples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.diffusion import noise_schedule


def rates(trained):
  """(signal, noise): sqrt(a) and sqrt(1 - a) of each timestep, float32."""
  a = noise_schedule.alphas_cumprod(trained)
  return jnp.float32(np.sqrt(a)), jnp.float32(np.sqrt(1 - a))


# Ho et al. 2020, Denoising Diffusion Probabilistic Models, equation 4.
def add_noise(x0, eps, signal, noise):
  return signal * x0 + noise * eps


# Salimans & Ho 2022, Progressive Distillation, appendix D.
def velocity(x0, eps, signal, noise):
  return signal * eps - noise * x0


# Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting.
def min_snr_weight(snr, gamma, prediction):
  """min(snr, gamma), a weight of the error in x0, for one in the prediction.

  It stays finite at zero terminal SNR, where v and x0 then have no weight.
  """
  return {
    'eps': jnp.minimum(1, gamma / snr),
    'v': jnp.minimum(snr, gamma) / (snr + 1),
    'x0': jnp.minimum(snr, gamma),
  }[prediction]


def draw(key, row, shape, timestep_range):
  """(timestep, eps, offset) of the example in a row of the global batch."""
  keys = jax.random.split(jax.random.fold_in(key, row), 3)
  timestep = jax.random.randint(keys[0], (), *timestep_range)
  eps = jax.random.normal(keys[1], shape)
  # One number for each channel: it shifts the mean of the whole image.
  offset = jax.random.normal(keys[2], (1, 1, shape[-1]))
  return timestep, eps, offset


def diffusion_loss(
  net,
  latents,
  key,
  trained,
  *,
  timestep_range=None,
  offset_noise=0.0,
  min_snr_gamma=None,
):
  """The mean over the batch of each example's weighted mean squared error.

  Args:
    net: (x, timestep) -> prediction; x is float32 [b, h, w, c], timestep int32
      [b]; the prediction is of the kind trained.prediction, in any float type.
    latents: [b, h, w, c].
    key: jax key of this step.
    trained: schedule.Schedule.
    timestep_range: (low, high), timesteps are uniform in low <= t < high; all
      of the schedule by default. SDXL's refiner knows (0, 200).
    offset_noise: standard deviation of the noise that is added to all pixels
      of a channel alike; SDXL's last stage has 0.05.
    min_snr_gamma: caps the weight of easy timesteps (5 is usual); None for
      the same weight at all timesteps.

  Returns:
    (loss, metrics): metrics has the loss and the unweighted error, mse.
  """
  low, high = timestep_range or (0, trained.num_train_timesteps)
  if not 0 <= low < high <= trained.num_train_timesteps:
    raise ValueError(
      f'timestep_range is {(low, high)}; it must ascend and lie within 0 and '
      f'{trained.num_train_timesteps}'
    )
  x0 = latents.astype(jnp.float32)
  timestep, eps, offset = jax.vmap(
    functools.partial(draw, key, shape=x0.shape[1:], timestep_range=(low, high))
  )(jnp.arange(len(x0)))
  eps = eps + offset_noise * offset

  signal, noise = (r[timestep, None, None, None] for r in rates(trained))
  target = {'eps': eps, 'v': velocity(x0, eps, signal, noise), 'x0': x0}[
    trained.prediction
  ]
  prediction = net(add_noise(x0, eps, signal, noise), timestep)

  error = jnp.square(prediction.astype(jnp.float32) - target)
  mse = error.mean(axis=(1, 2, 3))
  weight = 1.0
  if min_snr_gamma is not None:
    snr = jnp.square(signal / noise)[:, 0, 0, 0]
    weight = min_snr_weight(snr, min_snr_gamma, trained.prediction)
  loss = (weight * mse).mean()
  return loss, {'loss': loss, 'mse': mse.mean()}
