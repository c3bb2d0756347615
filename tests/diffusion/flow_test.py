"""Rectified flow: its loss, and its sampling by every sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import (
  denoiser,
  flow,
  losses,
  noise_schedule,
  sampler_traits,
  samplers,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import flow_config, scheduler_config
from tests.diffusion import losses_test

FLOW = noise_schedule.Schedule(prediction='flow')
SHIFTED = noise_schedule.Schedule(prediction='flow', shift=3.0)
SAMPLERS = [
  name
  for name, traits in sampler_traits.SAMPLER_TRAITS.items()
  if not traits.distilled_timesteps
]
RNG = np.random.default_rng(0)
NOISE = np.float32(RNG.normal(size=(2, 3, 4, 2)))


def test_shift_by_resolution(close):
  """Equation 23 of the paper: signal and noise as at the other resolution."""
  schedule = noise_schedule.Schedule(prediction='flow', shift_size=512)
  t_n = np.arange(1, 1001) / 1000
  close(noise_schedule.times(schedule.at_size(512, 512)), t_n, 1e-12)
  root = (1024 * 768 / 512**2) ** 0.5  # sqrt(m / n)
  t_m = root * t_n / (1 + (root - 1) * t_n)
  close(noise_schedule.times(schedule.at_size(1024, 768)), t_m, 1e-12)
  # Shifts multiply, and one without a size is the same at all.
  both = noise_schedule.Schedule(prediction='flow', shift=3.0, shift_size=512)
  assert both.at_size(1024, 768).shift == pytest.approx(3 * root)
  assert SHIFTED.at_size(64, 64) == SHIFTED
  assert losses_test.EPS.at_size(64, 64) == losses_test.EPS


@pytest.mark.parametrize('schedule', [FLOW, SHIFTED])
def test_loss(schedule, close):
  """Straight paths, and the time as timestep, against numpy."""
  latents = jax.random.normal(losses_test.KEY, (8, 4, 4, 2))
  seen = []

  @jax.jit
  def run(latents):
    def net(x, timestep):
      seen.append((x, timestep))
      return jnp.zeros_like(x)

    loss, _ = losses.diffusion_loss(net, latents, losses_test.KEY, schedule)
    return loss, *seen.pop()

  loss, x, timestep = run(latents)
  t = np.float64(timestep) / 1000
  assert len(np.unique(t)) > 4 and t.min() > 0 and t.max() <= 1
  # Of the index that is drawn, shifted.
  shifted = schedule.shift * np.arange(1, 1001) / 1000
  shifted /= 1 + (schedule.shift - 1) * np.arange(1, 1001) / 1000
  assert np.abs(t[:, None] - shifted).min(axis=1).max() < 1e-6
  t = t[:, None, None, None]
  eps = (x - (1 - t) * latents) / t
  assert np.std(eps) == pytest.approx(1, abs=0.15)
  expected = np.square(eps - latents).mean()
  assert float(loss) == pytest.approx(float(expected), 1e-3)


def test_a_perfect_net_has_no_loss():
  x0 = jnp.full((6, 4, 4, 2), 0.6)

  def net(x, timestep):
    t = timestep[:, None, None, None] / 1000
    return (x - x0) / t  # eps - x0

  run = jax.jit(losses.diffusion_loss, static_argnums=(0, 3))
  assert run(net, x0, losses_test.KEY, FLOW)[0] < 1e-8


def make(sampler, steps, schedule=FLOW, kind='linspace'):
  return sampling_schedule.make_sampling_schedule(
    schedule, sampling_schedule.Spacing(kind), sampler, steps
  )


# Data of this mean and standard deviation, whose flow is known.
MEAN, STD = 0.7, 0.4


def ideal_flow(x, timestep):
  """E[eps - x0 | x_t] of normal data, at time t."""
  t = timestep[:, None, None, None] / 1000
  variance = (1 - t) ** 2 * STD**2 + t**2
  centred = x - (1 - t) * MEAN
  x0 = MEAN + (1 - t) * STD**2 / variance * centred
  return t / variance * centred - x0


@functools.partial(jax.jit, static_argnames=('sampler', 'net'))
def run(levels, noise, fresh, sampler, net=ideal_flow):
  functions = samplers.SAMPLERS[sampler]
  denoise = denoiser.make_denoiser(net, levels)
  state = samplers.init_state(functions, levels.init_scale * noise)
  state = samplers.run_steps(
    denoise,
    state,
    levels,
    functions,
    0,
    len(levels.timesteps),
    noise=fresh if functions.stochastic else None,
  )
  return levels.final_scale * state.x


def fresh_noise(sampler, steps, shape):
  halves = (2,) if samplers.SAMPLERS[sampler].middle_noise else ()
  return np.float32(RNG.normal(size=(steps, *halves, *shape)))


@pytest.mark.parametrize(
  'sampler',
  [
    pytest.param(
      name,
      # The others share their steps with these.
      marks=[pytest.mark.slow]
      * (name not in ('euler', 'ddim', 'dpmpp_2m', 'unipc', 'heun')),
    )
    for name in SAMPLERS
  ],
)
def test_samplers_reach_the_data(sampler):
  """Of ideal flows, deterministic runs map each number, others the moments."""
  shape = (4, 16, 16, 4)
  noise = np.float32(RNG.normal(size=shape))
  levels = make(sampler, 150, SHIFTED, 'trailing')
  found = np.asarray(
    run(levels, noise, fresh_noise(sampler, 150, shape), sampler)
  )
  assert abs(found.mean() - MEAN) < 0.03
  assert abs(found.std() - STD) < 0.04
  if not levels.sigmas_up.any():
    # The ODE keeps each number's distance from the mean.
    assert np.abs(found - (MEAN + STD * noise)).max() < 0.1
    assert np.corrcoef(found.ravel(), noise.ravel())[0, 1] > 0.999


@pytest.mark.parametrize('schedule', [FLOW, SHIFTED])
def test_euler_is_euler_over_time(schedule, close):
  """Against a loop over t in numpy, without sigmas."""
  levels = make('euler', 7, schedule, 'trailing')
  base = (np.round(np.arange(1000, 0, -1000 / 7)) / 1000)[:7]
  times = np.append(
    schedule.shift * base / (1 + (schedule.shift - 1) * base), 0
  )
  x = np.float64(NOISE)
  for t, following in zip(times[:-1], times[1:]):
    timestep = np.full(2, 1000 * t)
    x = x + (following - t) * ideal_flow(x, timestep)
  close(run(levels, NOISE, None, 'euler'), x, 2e-5)
  close(levels.timesteps, 1000 * times[:-1], 1e-6)


def theirs(library, x, t):
  """A net of a few operations that both libraries have."""
  return 0.8 * library.tanh(x) - 0.5 * x + 0.3 * t / 1000


@pytest.mark.torch
@pytest.mark.parametrize('shift', [1.0, 3.0])
@pytest.mark.parametrize('steps', [1, 4, 20])
def test_live_scheduler(shift, steps, close):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  written = flow_config.write(
    noise_schedule.Schedule(prediction='flow', shift=shift)
  )
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(written)
  scheduler.set_timesteps(steps)
  x = torch.from_numpy(NOISE)
  for t in scheduler.timesteps:
    x = scheduler.step(theirs(torch, x, t), t, x).prev_sample
  trained, spacing = scheduler_config.read(written, 'euler')
  levels = sampling_schedule.make_sampling_schedule(
    trained, spacing, 'euler', steps
  )
  sigmas = levels.sigmas / (1 + levels.sigmas)
  close(sigmas, scheduler.sigmas.numpy(), 2e-6)
  close(levels.timesteps, scheduler.timesteps.numpy(), 2e-6)

  found = run(levels, NOISE, None, 'euler', OUR_NET)
  close(found, x.numpy(), 2e-5)


def OUR_NET(x, timestep):
  return theirs(jnp, x, timestep[:, None, None, None])


def test_image_to_image_starts_on_the_path():
  """Latents noised to a step's sigma are (1 - t) x0 + t eps to the net."""
  levels = make('euler', 10)
  t = levels.timesteps[4] / 1000
  x0, eps = NOISE[:1], NOISE[1:]
  x = x0 + levels.sigmas[4] * eps
  _, _, c_in = denoiser.flow_scalings(levels.sigmas[4])
  np.testing.assert_allclose(c_in * x, (1 - t) * x0 + t * eps, rtol=1e-5)


def test_refused():
  for sampler in 'lcm', 'tcd':
    with pytest.raises(ValueError, match=f'sampler {sampler} is of nets disti'):
      make(sampler, 4)
  with pytest.raises(ValueError, match="spacing is 'leading', which leaves ou"):
    make('euler', 4, kind='leading')
  with pytest.raises(ValueError, match="sigmas is 'karras', and a net trained"):
    flow.check('euler', 'linspace', 'karras')
  for fields, message in (
    (dict(prediction='eps', shift=3.0), "shift is 3.0 .* is 'eps': leave them"),
    (dict(prediction='flow', zero_terminal_snr=True), 'ends in pure noise any'),
    (dict(prediction='flow', shift=0.0), 'they must be above 0'),
  ):
    with pytest.raises(ValueError, match=message):
      noise_schedule.Schedule(**fields)


def test_written_and_read():
  for fields in (
    {},
    {'shift': 3.0},
    {'shift': 2.0, 'shift_size': 512},
  ):
    trained = noise_schedule.Schedule(prediction='flow', **fields)
    written = scheduler_config.for_run(trained)
    read, spacing = scheduler_config.read(written, 'dpmpp_2m')
    assert (read, spacing.kind) == (trained, 'linspace')
    assert written['_class_name'] == flow_config.EULER
    assert ('shift_size' in written) == ('shift_size' in fields)
  assert scheduler_config.sampler_of(written) == ('euler', None)
  with pytest.raises(ValueError, match='use_dynamic_shifting .* is True'):
    scheduler_config.read(written | {'use_dynamic_shifting': True}, 'euler')


def test_all_steps_fit():
  levels = make('euler', 1000, kind='trailing')
  assert (np.diff(levels.sigmas) < 0).all()
  assert levels.timesteps[0] == 1000 and levels.timesteps[-1] == 1
