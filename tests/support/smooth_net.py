"""A smooth net that a few lines of numpy compute, for runs of samplers.

It is the exact denoiser of images whose values are N(MEAN, STD^2), with a
ripple that couples the channels and depends on the noise level.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.diffusion import denoiser, noise_schedule, samplers

MEAN, STD = 0.7, 0.5
LONGEST = 1000  # steps of the one program that runs of any length share


def denoise(x, sigma, xp=np):
  """The estimate of x0, where x = x0 + sigma * eps."""
  gaussian = (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)
  scaled = x / xp.sqrt(1 + sigma**2)
  ripple = xp.sin(scaled + xp.roll(scaled, 1, -1) + xp.log(sigma))
  return gaussian + 0.2 * ripple * sigma**2 / (1 + sigma**2)


def predict(x_in, timestep, trained_sigmas, prediction, xp=np):
  """What a net returns for its input of unit variance and a timestep."""
  at = xp.arange(len(trained_sigmas))
  sigma = xp.exp(xp.interp(timestep, at, xp.log(trained_sigmas)))
  x = x_in * xp.sqrt(1 + sigma**2)
  x0 = denoise(x, sigma, xp)
  eps = (x - x0) / sigma
  scale = 1 / xp.sqrt(1 + sigma**2)
  return {'eps': eps, 'x0': x0, 'v': scale * (eps - sigma * x0)}[prediction]


def pad(schedule):
  """A schedule of LONGEST steps, of which the first ones are the run's."""
  n = len(schedule.timesteps)

  def padded(array, value):
    rest = np.full(LONGEST - n, value, array.dtype)
    return np.concatenate([array, rest])

  return schedule.__class__(
    **vars(schedule)
    | {
      'sigmas': padded(schedule.sigmas, -1.0),  # no call's
      'sigmas_down': padded(schedule.sigmas_down, 0.0),
      'sigmas_up': padded(schedule.sigmas_up, 0.0),
      'orders': padded(schedule.orders, 1),
      'timesteps': padded(schedule.timesteps, 0.0),
    }
  )


@functools.partial(jax.jit, static_argnames=('name', 'through_net'))
def _run(x, schedule, noise, stop, name, through_net):
  def net(x, timestep):
    return predict(
      x, timestep[0], schedule.trained_sigmas, schedule.prediction, jnp
    )

  def directly(x, sigma):
    return denoise(x, sigma, jnp)

  call = denoiser.make_denoiser(net, schedule) if through_net else directly
  sampler = samplers.SAMPLERS[name]
  state = samplers.init_state(sampler, x)
  return samplers.run_steps(
    call, state, schedule, sampler, 0, stop, noise=noise
  ).x


def run(name, schedule, x, noise=None, through_net=True):
  """x at the end of a run of ours, from x at its first sigma."""
  n, drawn = len(schedule.timesteps), samplers.SAMPLERS[name].middle_noise + 1
  padded = np.zeros((LONGEST, drawn, *x.shape), np.float32)
  if noise is not None:
    padded[:n] = np.reshape(noise[: n * drawn], (n, drawn, *x.shape))
  if drawn == 1:
    padded = padded[:, 0]
  with np.errstate(all='ignore'):
    x = _run(x, pad(schedule), padded, n, name, through_net)
  return np.asarray(x)


def trained_sigmas(schedule):
  """Of a noise schedule, ascending, with the terminal sigma of diffusers."""
  return noise_schedule.trained_sigmas(schedule, 4096.0)
