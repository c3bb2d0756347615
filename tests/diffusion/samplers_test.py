"""Samplers against recorded runs, and on a Gaussian that is solved exactly."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from sdxl_jax.diffusion import denoiser, samplers, schedule, scheduler_config

VARIANCE_PRESERVING = ('ddim', 'dpmpp_2m')


def levels_of(config, steps):
  """(sampler, Levels) of a recorded run; the sampler is None if not ours."""
  sampler = scheduler_config.SAMPLERS.get(config['_class_name'])
  if sampler is None:
    return None, None
  settings = scheduler_config.read(config, sampler)
  return sampler, schedule.make_levels(*settings, sampler, steps)


class Tape:
  """A net that repeats recorded outputs and keeps what it was told."""

  def __init__(self):
    self.outputs, self.inputs, self.timesteps = [], [], []

  def play(self, x, timestep):
    self.inputs.append(np.asarray(x))
    self.timesteps.append(np.asarray(timestep))
    return self.outputs[len(self.inputs) - 1]

  def net(self, x, timestep):
    return io_callback(self.play, x, x, timestep, ordered=True)


TAPE = Tape()


@functools.partial(jax.jit, static_argnames=['name', 'eta'])
def replay_tape(x, levels, noise, name, eta):
  denoise = denoiser.make_denoiser(TAPE.net, levels)
  sampler = samplers.SAMPLERS[name]
  if name == 'ddim':
    sampler = samplers.ancestral(eta)
  return samplers.sample(
    denoise, x, levels.sigmas, sampler, noise=noise, collect=True
  )


def replay(x, levels, name, outputs, timesteps, noise=None, eta=0.0):
  """x after each step of a net that repeats recorded outputs, and the tape."""
  TAPE.__init__()
  TAPE.outputs = list(outputs)
  path = replay_tape(x, levels, noise, name, eta)
  path = np.asarray(jax.block_until_ready(path))
  assert len(TAPE.inputs) == len(outputs)
  told = np.stack(TAPE.timesteps)
  assert np.abs(told - timesteps[:, None]).max() < 1e-3
  return path, np.stack(TAPE.inputs)


def as_recorded(path, levels, name):
  """Our x in the coordinates of the reference."""
  if name not in VARIANCE_PRESERVING:
    return path
  return path / np.sqrt(1 + levels.sigmas[1:, None, None, None, None] ** 2)


def last_calls(recorded, name):
  """The values after each whole step; Heun's records have those between."""
  if name != 'heun':
    return recorded
  return np.concatenate([recorded[1::2], recorded[-1:]])


def skip_uneven(name, config, timesteps):
  """diffusers' DDIM goes to t - 1000 // n, even if the next t is another."""
  gap = config['num_train_timesteps'] // len(timesteps)
  return name == 'ddim' and (np.diff(timesteps) != -gap).any()


def test_recorded_trajectories(golden, close, tolerances):
  index = json.loads((golden / 'schedule/trajectories.json').read_text())
  arrays = np.load(golden / 'schedule/trajectories.npz')
  seen = set()
  for key, entry in index.items():
    config = entry['config'] | {'_class_name': entry['class']}
    name, levels = levels_of(config, entry['steps'])
    if name is None or skip_uneven(name, config, arrays[f'{key}/timesteps']):
      continue
    run = lambda array: arrays.get(f'{key}/{array}')  # noqa: B023
    x = run('sample0')
    if name in VARIANCE_PRESERVING:
      x = x * np.sqrt(1 + levels.sigmas[0] ** 2)
    path, inputs = replay(
      x,
      levels,
      name,
      run('model_outputs'),
      run('timesteps'),
      noise=run('noise'),
    )
    zero = config['rescale_betas_zero_snr'] if name == 'euler' else False
    limit = 'schedule_trajectories' + '_euler_zero_snr' * zero
    expected = last_calls(run('prev_samples'), name)
    close(as_recorded(path, levels, name), expected, tolerances[limit], key)
    close(inputs, run('scaled_inputs'), tolerances[limit], key)
    seen.add(name)
  assert seen == set(samplers.SAMPLERS)


def test_recorded_pipelines(golden, close, tolerances):
  index = json.loads((golden / 'pipeline/index.json').read_text())
  limit = tolerances['pipeline_latents_each_step_and_final']
  seen = set()
  for file in sorted((golden / 'pipeline').glob('t2i_*.npz')):
    entry, run = index[file.stem], np.load(file)
    call, config = entry['call'], entry['scheduler']
    name, levels = levels_of(config, call['steps'])
    if name is None or skip_uneven(name, config, run['timesteps_called']):
      continue
    noise = [run[n] for n in sorted(run.files) if n.startswith('noise/')]
    path, _ = replay(
      levels.init_scale * run['init_latents'],
      levels,
      name,
      run['model_output_steps'],
      run['timesteps_called'],
      noise=np.stack(noise) if noise else None,
      eta=call['kwargs'].get('eta', 0.0),
    )
    expected = last_calls(run['latents_steps'], name)
    close(as_recorded(path, levels, name), expected, limit, file.stem)
    final = levels.final_scale * path[-1]
    close(final, run['final_latents'], limit, file.stem)
    seen.add(name)
  assert seen == set(samplers.SAMPLERS)


MEAN, STD = 0.7, 0.5


def gaussian(x, sigma):
  """The exact denoiser of images whose pixels are N(MEAN, STD^2)."""
  return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def spread(sigma):
  return np.sqrt(STD**2 + sigma**2)


@pytest.mark.parametrize(
  'name, order', [('euler', 1), ('ddim', 1), ('heun', 2), ('dpmpp_2m', 2)]
)
def test_order_of_convergence(name, order):
  start, end = 10.0, 0.3
  x = jnp.linspace(-20, 20, 16).reshape(1, 4, 4, 1)
  # The flow keeps each pixel's distance from the mean in standard deviations.
  exact = MEAN + (x - MEAN) * spread(end) / spread(start)

  def error(steps):
    sigmas = np.geomspace(start, end, steps + 1)
    y = samplers.sample(gaussian, x, sigmas, samplers.SAMPLERS[name])
    return np.abs(y - exact).max()

  errors = [error(steps) for steps in (20, 40, 80)]
  orders = np.log2(np.array(errors[:-1]) / errors[1:])
  assert order - 0.1 < orders.min() <= orders.max() < order + 0.5, errors


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_samples_have_the_right_distribution(name):
  levels = schedule.make_levels(
    schedule.Schedule(), schedule.Spacing('trailing'), name, 200
  )
  keys = jax.random.split(jax.random.key(0), 4)
  x = levels.init_scale * samplers.draw_noise(keys, 0, (4, 64, 64, 1))
  x = levels.final_scale * samplers.sample(
    gaussian, x, levels.sigmas, samplers.SAMPLERS[name], keys=keys
  )
  assert abs(x.mean() - MEAN) < 0.03
  assert abs(x.std() - STD) < 0.03  # of first order in 200 steps


@pytest.mark.parametrize('name', ['euler_ancestral', 'dpmpp_2m'])
def test_a_picture_does_not_depend_on_its_batch(name):
  levels = schedule.make_levels(
    schedule.Schedule(), schedule.Spacing(), name, 8
  )
  keys = jax.random.split(jax.random.key(3), 5)

  @jax.jit
  def pictures(keys):
    x = samplers.draw_noise(keys, 0, (len(keys), 8, 8, 4)) * levels.init_scale
    sampler = samplers.SAMPLERS[name]
    return samplers.sample(gaussian, x, levels.sigmas, sampler, keys=keys)

  together, alone = pictures(keys), pictures(keys[3:4])
  assert (together[3] == alone[0]).all()
  assert np.abs(together[2] - alone[0]).max() > 0.1


@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_only_the_number_of_steps_compiles_again(name):
  traces = []

  @jax.jit
  def run(x, levels, guidance_scale, guidance_rescale, keys):
    traces.append(name)
    net = lambda x, timestep: x + timestep[:, None, None, None] / 1000
    net = denoiser.guide(net, guidance_scale, guidance_rescale)
    denoise = denoiser.make_denoiser(net, levels)
    sampler = samplers.SAMPLERS[name]
    return samplers.sample(denoise, x, levels.sigmas, sampler, keys=keys)

  trained = schedule.Schedule()
  x = jnp.ones((2, 4, 4, 3))
  for i, spacing in enumerate(
    [
      schedule.Spacing(),
      schedule.Spacing('trailing', final_sigma='smallest'),
      schedule.Spacing('linspace', karras=name != 'ddim'),
    ]
  ):
    keys = jax.random.split(jax.random.key(i), 2)
    levels = schedule.make_levels(trained, spacing, name, 6)
    assert jnp.isfinite(run(x, levels, 1.0 + i, 0.1 * i, keys)).all()
  assert len(traces) == 1
  run(x, schedule.make_levels(trained, spacing, name, 7), 1.0, 0.0, keys)
  assert len(traces) == 2


def test_heun_skips_the_call_at_zero():
  calls = []

  def denoise(x, sigma):
    jax.debug.callback(lambda s: calls.append(float(s)), sigma)
    return gaussian(x, sigma)

  x = jnp.ones((1, 2, 2, 1))
  sigmas = jnp.array([3.0, 2.0, 1.0, 0.0])
  jax.jit(
    lambda x: samplers.sample(denoise, x, sigmas, samplers.SAMPLERS['heun'])
  )(x)
  jax.effects_barrier()
  assert sorted(calls) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize('name', ['euler', 'ddim', 'dpmpp_2m'])
def test_first_step_from_zero_terminal_snr(name):
  trained = schedule.Schedule(prediction='v', zero_terminal_snr=True)
  noise, v = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 4))
  levels = schedule.make_levels(trained, schedule.Spacing('trailing'), name, 4)
  denoise = denoiser.make_denoiser(lambda x, timestep: v, levels)
  x = samplers.sample(
    denoise,
    levels.init_scale * noise,
    levels.sigmas[:2],
    samplers.SAMPLERS[name],
  )
  # Pure noise says nothing of the image: all of it comes from the net.
  expected = levels.sigmas[1] * noise - v
  assert np.abs(x - expected).max() < 20 / levels.sigmas[0] + 1e-5


def test_noise_is_asked_for():
  x, sigmas = jnp.ones((1, 2, 2, 1)), jnp.array([2.0, 1.0, 0.0])
  sampler = samplers.SAMPLERS['euler_ancestral']
  with pytest.raises(ValueError, match='give it keys'):
    samplers.sample(gaussian, x, sigmas, sampler)
  with pytest.raises(ValueError, match='eta is 1.5'):
    samplers.ancestral(1.5)
