"""Nets of continuous noise levels (EDM) against live diffusers' schedulers."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import (
  denoiser,
  noise_schedule,
  sampler_traits,
  samplers,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import edm_config, scheduler_config

PLAYGROUND, COSXL = edm_config.PLAYGROUND, edm_config.COSXL
RNG = np.random.default_rng(0)
MIXING = np.float32(RNG.normal(size=(4, 4)) / 2)
NOISE = np.float32(RNG.normal(size=(2, 6, 4, 4)))
STEPS = (1, 4, 20, 50, 999)
CONFIGS = {
  'playground': PLAYGROUND,
  'cosxl': COSXL,
  'karras': COSXL | {'sigma_schedule': 'karras'},
  'rho': PLAYGROUND | {'rho': 3.0, 'sigma_min': 0.01},
  'first order': PLAYGROUND | {'solver_order': 1},
  'third order': PLAYGROUND | {'solver_order': 3},
  'heun': PLAYGROUND | {'solver_type': 'heun'},
  'sde': PLAYGROUND | {'algorithm_type': 'sde-dpmsolver++'},
  'to sigma_min': PLAYGROUND | {'final_sigmas_type': 'sigma_min'},
  'cosxl, multistep': COSXL | {'_class_name': edm_config.MULTISTEP},
  'no entries': {'_class_name': edm_config.EULER},
}
PUBLISHED = 'playground', 'cosxl'  # the others take long to compile


def net(library, x, timestep):
  """A net of a few operations that both libraries have."""
  return 1.2 * library.tanh(x @ library.asarray(MIXING)) + 0.1 * timestep


def make_schedule(config, steps, sampler=None, **spacing):
  """(sampler, SamplingSchedule) of a scheduler_config.json."""
  sampler = sampler or scheduler_config.sampler_of(config)[0]
  trained, spaced = scheduler_config.read(config, sampler)
  spaced = dataclasses.replace(spaced, **spacing)
  return sampler, sampling_schedule.make_sampling_schedule(
    trained, spaced, sampler, steps
  )


@functools.partial(jax.jit, static_argnames='sampler')
def sample(schedule, fresh, sampler):
  """Runs all steps of a schedule with the net above."""
  functions = samplers.SAMPLERS[sampler]
  denoise = denoiser.make_denoiser(
    lambda x, t: net(jnp, x, t[:, None, None, None]), schedule
  )
  state = samplers.init_state(functions, schedule.init_scale * NOISE)
  noise = fresh if functions.stochastic else None
  state = samplers.run_steps(
    denoise, state, schedule, functions, 0, len(fresh), noise=noise
  )
  return schedule.final_scale * state.x


def reference(config, steps, fresh, monkeypatch):
  """(the result of diffusers' scheduler, the scheduler)."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  scheduler = getattr(diffusers, config['_class_name']).from_config(config)
  scheduler.set_timesteps(steps)
  drawn = iter(torch.from_numpy(fresh))
  monkeypatch.setattr(
    sys.modules[type(scheduler).__module__],
    'randn_tensor',
    lambda *args, **kwargs: next(drawn),
  )
  x = torch.from_numpy(NOISE) * scheduler.init_noise_sigma
  for t in scheduler.timesteps:
    predicted = net(torch, scheduler.scale_model_input(x, t), t)
    x = scheduler.step(predicted, t, x).prev_sample
  return x.numpy(), scheduler


@pytest.mark.torch
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in PUBLISHED))
    for name in CONFIGS
  ],
)
def test_live_schedulers(name, close, tolerances, monkeypatch):
  config = CONFIGS[name]
  exponential = config.get('sigma_schedule') == 'exponential'
  for steps in STEPS:
    # diffusers starts its only exponential step at the smallest sigma.
    if steps == 1 and exponential:
      continue
    fresh = np.float32(RNG.normal(size=(steps, *NOISE.shape)))
    expected, theirs = reference(config, steps, fresh, monkeypatch)
    sampler, schedule = make_schedule(config, steps)
    close(schedule.sigmas, theirs.sigmas, 1e-5, f'{steps} steps: sigmas')
    np.testing.assert_allclose(schedule.timesteps, theirs.timesteps, atol=2e-6)
    assert schedule.init_scale == pytest.approx(theirs.init_noise_sigma)
    limit = tolerances['pipeline_latents_each_step_and_final']
    close(sample(schedule, fresh, sampler), expected, limit, f'{steps} steps')


@pytest.mark.parametrize('prediction', ['eps', 'v'])
def test_scalings(prediction):
  """The denoised image of a net that knows it, and unit variances."""
  rng, data = np.random.default_rng(0), 0.5
  x0 = data * rng.normal(size=(1, 64, 64, 4))
  eps = rng.normal(size=x0.shape)
  config = PLAYGROUND | {
    'prediction_type': {'eps': 'epsilon', 'v': 'v_prediction'}[prediction]
  }
  _, schedule = make_schedule(config, 5)
  for sigma in (0.01, 0.5, 30.0):
    seen = {}

    def predict(x, timestep, sigma=sigma, seen=seen):
      seen['x'], seen['timestep'] = x, timestep
      # Solves c_skip x + c_out F = x0 for F, Karras et al. 2022, appendix B.6.
      total = np.hypot(sigma, data)
      wanted = x0 - data**2 / total**2 * (x0 + sigma * eps)
      wanted = wanted * total / (sigma * data)
      return jnp.float32(wanted if prediction == 'eps' else -wanted)

    denoise = denoiser.make_denoiser(predict, schedule)
    denoised = denoise(jnp.float32(x0 + sigma * eps), jnp.float32(sigma))
    np.testing.assert_allclose(denoised, x0, atol=1e-4)
    assert np.std(seen['x']) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(seen['timestep'], np.log(sigma) / 4, rtol=1e-5)


def test_every_sampler_of_sigmas_runs():
  traits = sampler_traits.SAMPLER_TRAITS
  fitting = [n for n in traits if not traits[n].needs_timesteps]
  assert {'euler', 'dpmpp_2m', 'heun', 'unipc'} <= set(fitting)
  for sampler in traits:
    if sampler in fitting:
      _, schedule = make_schedule(PLAYGROUND, 7, sampler)
      assert schedule.sigmas[0] == 80 and schedule.final_scale == 1
      continue
    message = f'sampler {sampler} is defined on timesteps.* choose one of euler'
    with pytest.raises(ValueError, match=message):
      make_schedule(PLAYGROUND, 7, sampler)


@pytest.mark.parametrize(
  'spacing,match',
  [
    ({'kind': 'trailing'}, "spacing is 'trailing', which is of timesteps"),
    ({'sigmas': 'trained'}, "sigmas is 'trained', which is of timesteps"),
    ({'sigmas': 'align_your_steps'}, 'choose one of karras, exponential'),
  ],
)
def test_settings_of_timesteps_are_refused(spacing, match):
  with pytest.raises(ValueError, match=match):
    make_schedule(COSXL, 7, **spacing)


@pytest.mark.parametrize(
  'change,match',
  [
    ({'sigma_data': 0.0}, 'sigma_data 0.0'),
    ({'sigma_min': 90.0}, 'sigma_min 90.0'),
    ({'prediction_type': 'sample'}, "prediction_type .* is 'sample'"),
    ({'sigma_schedule': 'linear'}, "sigma_schedule .* is 'linear'"),
    ({'thresholding': True}, 'thresholding .* is True'),
  ],
)
def test_configs_that_are_refused(change, match):
  with pytest.raises(ValueError, match=match):
    scheduler_config.read(PLAYGROUND | change, 'dpmpp_2m')


def test_zero_snr_is_of_timesteps():
  with pytest.raises(ValueError, match='zero_terminal_snr is of schedules'):
    noise_schedule.Schedule(
      sigma_data=1.0, prediction='v', zero_terminal_snr=True
    )
