"""Samplers against recorded runs, and on a Gaussian that is solved exactly."""

import dataclasses
import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from sdxl_jax.diffusion import (
  denoiser,
  guidance,
  noise_schedule,
  sampler_traits,
  samplers,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import scheduler_config
from tests.support import sample_loop, schedulers, smooth_net


def levels_of(config, steps, eta=None):
  """(sampler, Levels) of a recorded run."""
  sampler = schedulers.sampler_of(config)
  settings = scheduler_config.read(config, sampler)
  return sampler, sampling_schedule.make_sampling_schedule(
    *settings, sampler, steps, eta
  )


def levels_at(sigmas):
  """Levels of a run without fresh noise at any sigmas."""
  trained = noise_schedule.Schedule(), sampling_schedule.Spacing('trailing')
  sigmas = np.asarray(sigmas, np.float32)
  return dataclasses.replace(
    sampling_schedule.make_sampling_schedule(
      *trained, 'euler', len(sigmas) - 1
    ),
    sigmas=sigmas,
    sigmas_down=sigmas[1:],
    sigmas_up=np.zeros(len(sigmas) - 1, np.float32),
  )


RECORDED = {
  'euler',
  'euler_ancestral',
  'heun',
  'lms',
  'ddim',
  'dpmpp_2m',
  'unipc',
}


def levels_of_sampler(name, sigmas):
  """Levels with the fresh noise of a sampler at any sigmas."""
  levels = levels_at(sigmas)
  traits = sampler_traits.SAMPLER_TRAITS[name]
  timesteps = np.zeros(len(sigmas) - 1)
  down = traits.sigma_down(levels.sigmas, timesteps, timesteps, traits.eta)
  up = np.sqrt(levels.sigmas[1:] ** 2 - down**2)
  return dataclasses.replace(levels, sigmas_down=down, sigmas_up=up)


class Tape:
  """A net that repeats recorded outputs and records its inputs."""

  def __init__(self):
    self.outputs, self.inputs, self.timesteps = [], [], []

  def play(self, x, timestep):
    self.inputs.append(np.asarray(x))
    self.timesteps.append(np.asarray(timestep))
    return self.outputs[len(self.inputs) - 1]

  def net(self, x, timestep):
    return io_callback(self.play, x, x, timestep, ordered=True)


TAPE = Tape()


def path(denoise, x, levels, sampler, noise=None):
  """x after each step."""

  def step(carry, i):
    carry = samplers.run_steps(
      denoise, carry, levels, sampler, i, i + 1, noise=noise
    )
    return carry, carry.x

  steps = jnp.arange(len(levels.sigmas) - 1)
  return jax.lax.scan(step, samplers.init_state(sampler, x), steps)[1]


@functools.partial(jax.jit, static_argnames=['name'])
def replay_tape(x, levels, noise, name):
  denoise = denoiser.make_denoiser(TAPE.net, levels)
  return path(denoise, x, levels, samplers.SAMPLERS[name], noise)


def replay(x, levels, name, outputs, timesteps, noise=None):
  """x after each step of a net that repeats recorded outputs, and the tape."""
  TAPE.__init__()
  TAPE.outputs = list(outputs)
  if noise is None:
    noise = np.zeros((len(levels.sigmas_up), *x.shape), np.float32)
  elif len(noise) < len(levels.sigmas_up):  # the last step took none
    noise = np.concatenate([noise, np.zeros_like(noise[:1])])
  replayed = replay_tape(x, levels, noise, name)
  replayed = np.asarray(jax.block_until_ready(replayed))
  assert len(TAPE.inputs) == len(outputs)
  played = np.stack(TAPE.timesteps)
  assert np.abs(played - timesteps[:, None]).max() < 1e-3
  return replayed, np.stack(TAPE.inputs)


def as_recorded(path, levels, name):
  """Our x in the coordinates of the reference."""
  if not sampler_traits.SAMPLER_TRAITS[name].variance_preserving:
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
    if skip_uneven(name, config, arrays[f'{key}/timesteps']):
      continue

    def run(array):
      return arrays.get(f'{key}/{array}')  # noqa: B023

    x = run('sample0')
    if sampler_traits.SAMPLER_TRAITS[name].variance_preserving:
      x = x * np.sqrt(1 + levels.sigmas[0] ** 2)
    replayed, inputs = replay(
      x,
      levels,
      name,
      run('model_outputs'),
      run('timesteps'),
      noise=run('noise'),
    )
    limit = 'schedule_trajectories'
    if name == 'euler' and config['rescale_betas_zero_snr']:
      limit += '_euler_zero_snr'
    expected = last_calls(run('prev_samples'), name)
    close(as_recorded(replayed, levels, name), expected, tolerances[limit], key)
    close(inputs, run('scaled_inputs'), tolerances[limit], key)
    seen.add(name)
  assert seen == RECORDED


def test_recorded_pipelines(golden, close, tolerances):
  index = json.loads((golden / 'pipeline/index.json').read_text())
  limit = tolerances['pipeline_latents_each_step_and_final']
  seen = set()
  for file in sorted((golden / 'pipeline').glob('t2i_*.npz')):
    entry, run = index[file.stem], np.load(file)
    call, config = entry['call'], entry['scheduler']
    eta = call['kwargs'].get('eta')
    name, levels = levels_of(config, call['steps'], eta)
    if skip_uneven(name, config, run['timesteps_called']):
      continue
    noise = [run[n] for n in sorted(run.files) if n.startswith('noise/')]
    replayed, _ = replay(
      levels.init_scale * run['init_latents'],
      levels,
      name,
      run['model_output_steps'],
      run['timesteps_called'],
      noise=np.stack(noise) if noise else None,
    )
    expected = last_calls(run['latents_steps'], name)
    close(as_recorded(replayed, levels, name), expected, limit, file.stem)
    final = levels.final_scale * replayed[-1]
    close(final, run['final_latents'], limit, file.stem)
    seen.add(name)
  assert seen == RECORDED


MEAN, STD = 0.7, 0.5


def gaussian(x, sigma):
  """The exact denoiser of images whose pixels are N(MEAN, STD^2)."""
  return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def spread(sigma):
  return np.sqrt(STD**2 + sigma**2)


@pytest.mark.parametrize(
  'name, order',
  [
    ('euler', 1),
    ('ddim', 1),
    ('heun', 2),
    ('dpm_2', 2),
    ('dpmpp_2m', 2),
    ('dpmpp_2s', 2),
    ('dpmpp_3m', 2.8),
    ('deis', 2.8),
    ('dpmpp_2s_ancestral', 2),
    ('unipc', 2.8),  # its first steps are of lower order
    ('lms', 3.5),
  ],
)
def test_order_of_convergence(name, order):
  start, end = 10.0, 0.3
  x = jnp.linspace(-20, 20, 16).reshape(1, 4, 4, 1)
  # The flow keeps each pixel's distance from the mean in standard deviations.
  exact = MEAN + (x - MEAN) * spread(end) / spread(start)

  def error(steps):
    sigmas = np.geomspace(start, end, steps + 1)
    sampler = samplers.SAMPLERS[name]._replace(stochastic=False)
    y = sample_loop.sample(gaussian, x, levels_at(sigmas), sampler)
    return np.abs(y - exact).max()

  errors = [error(steps) for steps in (20, 40, 80)]
  orders = np.log2(np.array(errors[:-1]) / errors[1:])
  assert order - 0.1 < orders.min() <= orders.max() < order + 0.5, errors


# The other two are for nets that were distilled.
@pytest.mark.parametrize('name', sorted({*samplers.SAMPLERS} - {'lcm', 'tcd'}))
def test_samples_have_the_right_distribution(name):
  levels = sampling_schedule.make_sampling_schedule(
    noise_schedule.Schedule(), sampling_schedule.Spacing('trailing'), name, 200
  )
  keys = jax.random.split(jax.random.key(0), 4)
  x = levels.init_scale * samplers.draw_noise(keys, 0, (4, 64, 64, 1))
  x = levels.final_scale * sample_loop.sample(
    gaussian, x, levels, samplers.SAMPLERS[name], keys=keys
  )
  assert abs(x.mean() - MEAN) < 0.03
  assert abs(x.std() - STD) < 0.03  # of first order in 200 steps


@pytest.mark.parametrize('name', ['euler_ancestral', 'dpmpp_2m'])
def test_an_image_does_not_depend_on_its_batch(name):
  levels = sampling_schedule.make_sampling_schedule(
    noise_schedule.Schedule(), sampling_schedule.Spacing(), name, 8
  )
  keys = jax.random.split(jax.random.key(3), 5)

  @jax.jit
  def sample_images(keys):
    x = samplers.draw_noise(keys, 0, (len(keys), 8, 8, 4)) * levels.init_scale
    sampler = samplers.SAMPLERS[name]
    return sample_loop.sample(gaussian, x, levels, sampler, keys=keys)

  together, alone = sample_images(keys), sample_images(keys[3:4])
  assert (together[3] == alone[0]).all()
  assert np.abs(together[2] - alone[0]).max() > 0.1


# One name of each sampler: names may differ in their schedules alone.
DIFFERENT = {sampler: name for name, sampler in samplers.SAMPLERS.items()}


@pytest.mark.parametrize('name', DIFFERENT.values())
def test_only_the_number_of_steps_compiles_again(name):
  traces = []

  @jax.jit
  def run(x, levels, guidance_scale, guidance_rescale, keys):
    traces.append(name)

    def net(x, timestep):
      return x + timestep[:, None, None, None] / 1000

    net = guidance.classifier_free_guidance(
      net, guidance_scale, guidance_rescale
    )
    denoise = denoiser.make_denoiser(net, levels)
    sampler = samplers.SAMPLERS[name]
    return sample_loop.sample(denoise, x, levels, sampler, keys=keys)

  trained = noise_schedule.Schedule()
  x = jnp.ones((2, 4, 4, 3))
  for i, spacing in enumerate(
    [
      sampling_schedule.Spacing(),
      sampling_schedule.Spacing('trailing', final_sigma='smallest'),
      sampling_schedule.Spacing('linspace', sigmas='karras'),
    ]
  ):
    keys = jax.random.split(jax.random.key(i), 2)
    levels = sampling_schedule.make_sampling_schedule(trained, spacing, name, 6)
    assert jnp.isfinite(run(x, levels, 1.0 + i, 0.1 * i, keys)).all()
  assert len(traces) == 1
  run(
    x,
    sampling_schedule.make_sampling_schedule(trained, spacing, name, 7),
    1.0,
    0.0,
    keys,
  )
  assert len(traces) == 2


def test_eta_needs_no_new_program():
  traces = []

  @jax.jit
  def run(x, levels, keys):
    traces.append(1)
    sampler = samplers.SAMPLERS['ddim']
    return sample_loop.sample(gaussian, x, levels, sampler, keys=keys)

  trained = noise_schedule.Schedule(), sampling_schedule.Spacing()
  keys = jax.random.split(jax.random.key(0), 1)
  samples = [
    run(
      jnp.ones((1, 4, 4, 1)),
      sampling_schedule.make_sampling_schedule(*trained, 'ddim', 6, eta),
      keys,
    )
    for eta in (0.0, 0.5, 1.0)
  ]
  assert len(traces) == 1
  assert np.abs(samples[0] - samples[1]).max() > 1e-3
  assert np.abs(samples[1] - samples[2]).max() > 1e-3


def test_dpmpp_2s_ancestral_as_its_formula():
  """In t = -log(sigma), with expm1, as the reference (sgm) writes it."""
  sigma, sigma_next = 3.0, 2.0
  levels = levels_of_sampler('dpmpp_2s_ancestral', [sigma, sigma_next, 0.0])
  x, fresh = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 1))
  up = min(
    sigma_next,
    np.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2),
  )
  down = np.sqrt(sigma_next**2 - up**2)
  t, t_down = -np.log(sigma), -np.log(down)
  h = t_down - t
  s = np.exp(-(t + h / 2))
  x_2 = s / sigma * x - np.expm1(-h / 2) * gaussian(x, sigma)
  expected = down / sigma * x - np.expm1(-h) * gaussian(x_2, s) + up * fresh
  sampler = samplers.SAMPLERS['dpmpp_2s_ancestral']
  noise = np.stack([fresh, fresh])
  states = path(gaussian, np.float32(x), levels, sampler, noise)
  assert np.abs(states[0] - expected).max() < 1e-6
  last = gaussian(expected, sigma_next)  # to 0: no second call, no noise
  assert np.abs(states[1] - last).max() < 1e-6


@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize(
  'prediction, steps', [('eps', 1), ('eps', 4), ('v', 20)]
)
@pytest.mark.parametrize(
  'scheduler, config, eta, limit',
  [
    ('DDIMScheduler', {'clip_sample': False}, 0.7, 3e-6),
    (
      'DPMSolverMultistepScheduler',
      {'algorithm_type': 'sde-dpmsolver++'},
      None,
      3e-6,
    ),
    ('LCMScheduler', {}, None, 2e-5),
    ('TCDScheduler', {}, 0.3, 3e-6),
    ('TCDScheduler', {}, 0.8, 3e-6),
    ('UniPCMultistepScheduler', {}, None, 3e-6),
    ('LMSDiscreteScheduler', {}, None, 2e-5),
  ],
)
def test_live_trajectories(
  scheduler, config, eta, limit, steps, prediction, monkeypatch, close
):
  """A net that depends on its input, and the same fresh noise on both sides."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  written = scheduler_config.write(
    noise_schedule.Schedule(prediction=prediction), sampling_schedule.Spacing()
  )
  config = written | config | {'_class_name': scheduler}
  reference = getattr(diffusers, scheduler).from_config(config)
  reference.set_timesteps(steps)
  name, levels = levels_of(config, steps, eta)
  rng = np.random.default_rng(0)
  x, *noise = rng.normal(size=(steps + 1, 1, 4, 4, 2)).astype(np.float32)
  draws = iter(noise)
  monkeypatch.setattr(
    sys.modules[type(reference).__module__],
    'randn_tensor',
    lambda *args, **kwargs: torch.from_numpy(next(draws)),
    raising=False,
  )

  def net(x):
    return 0.9 * x + 0.1 * x[..., ::-1]

  y = torch.from_numpy(x) * reference.init_noise_sigma
  for t in reference.timesteps:
    scaled = reference.scale_model_input(y, t).numpy()
    output = torch.from_numpy(np.ascontiguousarray(net(scaled)))
    more = {} if eta is None else {'eta': eta}
    y = reference.step(output, t, y, **more).prev_sample
  denoise = denoiser.make_denoiser(lambda x, timestep: net(x), levels)
  x = sample_loop.sample(
    denoise,
    levels.init_scale * x,
    levels,
    samplers.SAMPLERS[name],
    noise=np.stack(noise),
  )
  close(levels.final_scale * x, y.numpy(), limit)


def test_heun_skips_the_call_at_zero():
  calls = []

  def denoise(x, sigma):
    jax.debug.callback(lambda s: calls.append(float(s)), sigma)
    return gaussian(x, sigma)

  x = jnp.ones((1, 2, 2, 1))
  levels, sampler = levels_at([3.0, 2.0, 1.0, 0.0]), samplers.SAMPLERS['heun']
  jax.jit(lambda x: sample_loop.sample(denoise, x, levels, sampler))(x)
  jax.effects_barrier()
  assert sorted(calls) == [1, 1, 2, 2, 3]


@pytest.mark.parametrize('name', ['euler', 'ddim', 'dpmpp_2m'])
def test_first_step_from_zero_terminal_snr(name):
  trained = noise_schedule.Schedule(prediction='v', zero_terminal_snr=True)
  noise, v = jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 4))
  levels = sampling_schedule.make_sampling_schedule(
    trained, sampling_schedule.Spacing('trailing'), name, 4
  )
  denoise = denoiser.make_denoiser(lambda x, timestep: v, levels)
  sampler = samplers.SAMPLERS[name]
  carry = samplers.init_state(sampler, levels.init_scale * noise)
  keys = jax.random.split(jax.random.key(1), 1)
  x = samplers.run_steps(denoise, carry, levels, sampler, 0, 1, keys=keys).x
  # Pure noise says nothing of the image: all of it comes from the net.
  expected = levels.sigmas[1] * noise - v
  assert np.abs(x - expected).max() < 20 / levels.sigmas[0] + 1e-5


@pytest.mark.parametrize('sigmas', sampling_schedule.SIGMAS)
@pytest.mark.parametrize('name', samplers.SAMPLERS)
def test_zero_terminal_snr_does_not_explode(name, sigmas):
  """A step from the stand-in for infinity multiplies no difference."""
  spacing = sampling_schedule.Spacing('trailing', sigmas=sigmas)
  trained = noise_schedule.Schedule(zero_terminal_snr=True)
  for steps in (1, 4, 10, 20, 50):
    levels = sampling_schedule.make_sampling_schedule(
      trained, spacing, name, steps
    )
    rng = np.random.default_rng(steps)
    first, *noise = rng.normal(size=(2 * steps + 1, 1, 4, 4, 2))
    x = np.float32(levels.init_scale * first)
    x = smooth_net.run(name, levels, x, np.float32(noise), through_net=False)
    # The images have about 0.7 +- 0.5.
    assert np.abs(levels.final_scale * x - smooth_net.MEAN).max() < 5, steps


def test_noise_is_asked_for():
  x, levels = jnp.ones((1, 2, 2, 1)), levels_at([2.0, 1.0, 0.0])
  sampler = samplers.SAMPLERS['euler_ancestral']
  with pytest.raises(ValueError, match='pass keys'):
    sample_loop.sample(gaussian, x, levels, sampler)
