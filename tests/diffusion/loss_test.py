"""The training loss against recorded numbers, and its randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import loss, schedule

EPS = schedule.Schedule()
V = schedule.Schedule(prediction='v')
ZERO = schedule.Schedule(prediction='v', zero_terminal_snr=True)


@pytest.fixture(scope='module')
def recorded(golden):
  return np.load(golden / 'schedule' / 'forward_process.npz')


def rates_at(trained, timesteps):
  timesteps = timesteps.astype(int)
  return (r[timesteps, None, None, None] for r in loss.rates(trained))


@pytest.mark.parametrize('prefix, trained', [('', EPS), ('zsnr/', ZERO)])
def test_recorded_forward_process(recorded, close, prefix, trained):
  signal, noise = rates_at(trained, recorded['timesteps'])
  x0, eps = recorded['x0'], recorded['noise']
  noisy = loss.add_noise(x0, eps, signal, noise)
  close(noisy, recorded[prefix + 'add_noise'], 1e-5)
  v = loss.velocity(x0, eps, signal, noise)
  close(v, recorded[prefix + 'velocity'], 1e-5)


@pytest.mark.parametrize('prediction', schedule.PREDICTIONS)
def test_recorded_min_snr_weights(recorded, close, prediction):
  signal, noise = rates_at(EPS, recorded['timesteps'])
  snr = np.ravel((signal / noise) ** 2)
  close(snr, recorded['snr'], 1e-5)
  prefix = f'min_snr_weight_{prediction}_gamma'
  names = [n for n in recorded.files if n.startswith(prefix)]
  assert names
  for name in names:
    weight = loss.min_snr_weight(snr, float(name[len(prefix) :]), prediction)
    close(weight, recorded[name], 1e-5)


@pytest.mark.parametrize('sampler', schedule.DIFFUSERS_SAMPLERS.values())
def test_recorded_noising_of_samplers(recorded, close, sampler):
  """x0 + sigma eps, and what the net sees of it."""
  name = {'euler_ancestral': 'euler_a'}.get(sampler, sampler)
  sigmas = schedule.timesteps_to_sigmas(
    recorded[f'sampler/{name}/timesteps'], schedule.trained_sigmas(EPS)
  )[:, None, None, None]
  n = len(sigmas)
  x = recorded['x0'][:n] + sigmas * recorded['noise'][:n]
  seen = x / np.sqrt(1 + sigmas**2)
  if sampler in ('ddim', 'dpmpp_2m'):
    x = seen
  close(x, recorded[f'sampler/{name}/add_noise'], 1e-5)
  close(seen, recorded[f'sampler/{name}/scale_model_input'], 1e-5)
