"""Samplers beside live diffusers and k-diffusion, around a smooth net."""

import functools
import sys

import numpy as np
import pytest

from sdxl_jax.diffusion import (
  noise_schedule,
  samplers,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import scheduler_config
from tests.support import k_diffusion_files, smooth_net

SHAPE = 1, 4, 4, 2
LIMIT = 2e-4  # of the largest latent

# {id: (class, options)}; each is one of our samplers.
SCHEDULERS = {
  'euler': ('EulerDiscreteScheduler', {}),
  'euler_to_smallest': (
    'EulerDiscreteScheduler',
    {'final_sigmas_type': 'sigma_min'},
  ),
  'euler_ancestral': ('EulerAncestralDiscreteScheduler', {}),
  'heun': ('HeunDiscreteScheduler', {}),
  'dpm_2': ('KDPM2DiscreteScheduler', {}),
  'dpm_2_ancestral': ('KDPM2AncestralDiscreteScheduler', {}),
  'lms': ('LMSDiscreteScheduler', {}),
  'ddim': ('DDIMScheduler', {}),
  'ddpm': ('DDPMScheduler', {}),
  'dpmpp_2m': ('DPMSolverMultistepScheduler', {}),
  'dpmpp_1m': ('DPMSolverMultistepScheduler', {'solver_order': 1}),
  'dpmpp_2m_to_smallest': (
    'DPMSolverMultistepScheduler',
    {'final_sigmas_type': 'sigma_min'},
  ),
  'dpmpp_2m_full_order': (
    'DPMSolverMultistepScheduler',
    {'final_sigmas_type': 'sigma_min', 'lower_order_final': False},
  ),
  'dpmpp_2m_euler_at_final': (
    'DPMSolverMultistepScheduler',
    {'final_sigmas_type': 'sigma_min', 'euler_at_final': True},
  ),
  'dpmpp_2m_heun': ('DPMSolverMultistepScheduler', {'solver_type': 'heun'}),
  'dpmpp_2m_sde': (
    'DPMSolverMultistepScheduler',
    {'algorithm_type': 'sde-dpmsolver++'},
  ),
  'dpmpp_2m_sde_heun': (
    'DPMSolverMultistepScheduler',
    {'algorithm_type': 'sde-dpmsolver++', 'solver_type': 'heun'},
  ),
  'dpmpp_3m': ('DPMSolverMultistepScheduler', {'solver_order': 3}),
  'dpmpp_3m_to_smallest': (
    'DPMSolverMultistepScheduler',
    {'solver_order': 3, 'final_sigmas_type': 'sigma_min'},
  ),
  'dpmpp_2s': ('DPMSolverSinglestepScheduler', {}),
  'dpmpp_2s_to_smallest': (
    'DPMSolverSinglestepScheduler',
    {'final_sigmas_type': 'sigma_min'},
  ),
  'dpmpp_sde': ('DPMSolverSDEScheduler', {}),
  'deis': ('DEISMultistepScheduler', {}),
  'deis_1': ('DEISMultistepScheduler', {'solver_order': 1}),
  'deis_3': ('DEISMultistepScheduler', {'solver_order': 3}),
  'unipc': ('UniPCMultistepScheduler', {}),
  'unipc_to_smallest': (
    'UniPCMultistepScheduler',
    {'final_sigmas_type': 'sigma_min'},
  ),
  'lcm': ('LCMScheduler', {}),
  'tcd': ('TCDScheduler', {}),
}
SPACINGS = 'leading', 'trailing', 'linspace'
RESPACED = 'karras', 'exponential', 'beta'


def config_of(named, options, prediction='eps', spacing='leading', sigmas=None):
  """A scheduler_config.json of a class of diffusers."""
  written = scheduler_config.write(
    noise_schedule.Schedule(prediction=prediction),
    sampling_schedule.Spacing(spacing),
  )
  if sigmas is not None:
    written |= {f'use_{sigmas}_sigmas': True}
  return written | {'_class_name': named, 'clip_sample': False} | options


def ours(config, steps, noise):
  """(latents at the end of our run, its schedule)."""
  name, _ = scheduler_config.sampler_of(config)
  trained, spacing = scheduler_config.read(config, name)
  schedule = sampling_schedule.make_sampling_schedule(
    trained, spacing, name, steps
  )
  x = schedule.init_scale * noise[0]
  x = smooth_net.run(name, schedule, x, noise[1:])
  return schedule.final_scale * x, schedule


def theirs(config, steps, noise, schedule, monkeypatch):
  """Latents at the end of the reference's run."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  if config['_class_name'] == 'DPMSolverSDEScheduler':
    pytest.importorskip('torchsde')
  scheduler = getattr(diffusers, config['_class_name']).from_config(config)
  scheduler.set_timesteps(steps)
  if hasattr(scheduler, 'set_begin_index'):
    # Otherwise it begins with the second where two timesteps are the same.
    scheduler.set_begin_index(0)
  draws = iter(torch.from_numpy(noise[1:]))
  monkeypatch.setattr(
    sys.modules[type(scheduler).__module__],
    'randn_tensor',
    lambda *args, **kwargs: next(draws),
    raising=False,
  )
  scheduler.noise_sampler = brownian(draws)
  if config['_class_name'] == 'DEISMultistepScheduler':
    # Its coefficients are small differences of large float32 numbers.
    scheduler.sigmas = scheduler.sigmas.double()
  trained = smooth_net.trained_sigmas(noise_schedule.Schedule())
  x = torch.from_numpy(noise[0]) * scheduler.init_noise_sigma
  for t in scheduler.timesteps:
    scaled = scheduler.scale_model_input(x, t).numpy()
    output = smooth_net.predict(
      scaled.astype(float), float(t), trained, schedule.prediction
    )
    output = torch.from_numpy(output.astype(np.float32))
    x = scheduler.step(output, t, x).prev_sample.float()
  return x.numpy()


def plain(draws):
  """Noise of each step."""
  return lambda sigma, sigma_next: next(draws)


def brownian(draws):
  """Noise of both halves of a step, as one Brownian motion over sigma."""
  first = {}

  def noise(sigma, sigma_next):
    if float(sigma) not in first:
      first.clear()
      first[float(sigma)] = float(sigma_next), next(draws)
      return first[float(sigma)][1]
    middle, half = first.pop(float(sigma))
    share = (float(sigma) - middle) / (float(sigma) - float(sigma_next))
    return share**0.5 * half + (1 - share) ** 0.5 * next(draws)

  return noise


def is_comparable(config, steps):
  """Whether the reference computes such a run, and correctly."""
  named, spacing = config['_class_name'], config['timestep_spacing']
  respaced = any(config.get(f'use_{sigmas}_sigmas') for sigmas in RESPACED)
  if named in ('LCMScheduler', 'TCDScheduler'):
    return steps <= 50
  if named == 'DDIMScheduler':  # goes to t - 1000 // steps
    return spacing == 'leading' or (spacing == 'trailing' and 1000 % steps == 0)
  if named == 'LMSDiscreteScheduler':
    # The last step, to 0, is hundreds of times as long as those before it, and
    # the cubic through their slopes makes 1e-2 of a rounding error.
    return steps <= 50 or not respaced
  if named == 'DEISMultistepScheduler' or 'final_sigmas_type' in config:
    # The last step may have no length, by which the third order divides.
    no_length = respaced or steps == 999
    if named.startswith(('DEIS', 'UniPC')) and respaced and steps == 1:
      return False  # and is then the only one
    return config.get('solver_order', 2) < 3 or not no_length
  return True


def check(config, counts, monkeypatch, close):
  """Compares runs of several numbers of steps."""
  for steps in filter(functools.partial(is_comparable, config), counts):
    rng = np.random.default_rng(steps)
    noise = rng.normal(size=(2 * steps + 1, *SHAPE)).astype(np.float32)
    found, schedule = ours(config, steps, noise)
    expected = theirs(config, steps, noise, schedule, monkeypatch)
    close(found, expected, LIMIT, f'{steps} steps of {config}')


def live(function):
  """Marks a test that compares with the reference itself."""
  for mark in (
    pytest.mark.torch,
    pytest.mark.filterwarnings('ignore:__array'),
    pytest.mark.filterwarnings('ignore:.*sigma_min'),
  ):
    function = mark(function)
  return function


@live
@pytest.mark.parametrize('name', SCHEDULERS)
def test_diffusers(name, monkeypatch, close):
  named, options = SCHEDULERS[name]
  for steps, spacing, sigmas in (
    (1, 'leading', None),
    (4, 'trailing', None),
    (14, 'leading', 'karras'),
    (20, 'linspace', 'beta'),
    (15, 'leading', 'exponential'),
  ):
    config = config_of(named, options, 'eps', spacing, sigmas)
    check(config, [steps], monkeypatch, close)


@live
@pytest.mark.slow
@pytest.mark.parametrize('name', SCHEDULERS)
def test_diffusers_at_all_spacings(name, monkeypatch, close):
  named, options = SCHEDULERS[name]
  for spacing in SPACINGS:
    for sigmas in (None, *RESPACED):
      config = config_of(named, options, 'eps', spacing, sigmas)
      check(config, (4, 50), monkeypatch, close)
  for spacing, sigmas in (('trailing', None), ('linspace', 'karras')):
    config = config_of(named, options, 'eps', spacing, sigmas)
    check(config, (1, 999), monkeypatch, close)
  config = config_of(named, options, 'v', 'trailing')
  check(config, (1, 4, 20, 50), monkeypatch, close)


# Of ours: (its function, options).
K_DIFFUSION = {
  'euler': ('euler', {}),
  'euler_ancestral': ('euler_ancestral', {}),
  'heun': ('heun', {}),
  'dpm_2': ('dpm_2', {}),
  'dpm_2_ancestral': ('dpm_2_ancestral', {}),
  'lms': ('lms', {}),
  'dpmpp_2s_ancestral': ('dpmpp_2s_ancestral', {}),
  'dpmpp_sde': ('dpmpp_sde', {}),
  'dpmpp_2m': ('dpmpp_2m', {}),
  'dpmpp_2m_sde': ('dpmpp_2m_sde', {}),
  'dpmpp_2m_sde_heun': ('dpmpp_2m_sde', {'solver_type': 'heun'}),
  'dpmpp_3m_sde': ('dpmpp_3m_sde', {}),
}


def check_k_diffusion(name, sigmas, counts, close, eta=None):
  """Compares runs over the same sigmas around the same denoiser."""
  torch = pytest.importorskip('torch')
  sampling = k_diffusion_files.load('sampling')
  function, options = K_DIFFUSION[name]
  stochastic = samplers.SAMPLERS[name].stochastic
  if eta is not None:
    options = options | {'eta': eta}
  for steps in counts:
    schedule = sampling_schedule.make_sampling_schedule(
      noise_schedule.Schedule(),
      sampling_schedule.Spacing('trailing', sigmas=sigmas),
      name,
      steps,
      eta,
    )
    rng = np.random.default_rng(steps)
    noise = rng.normal(size=(2 * steps + 1, *SHAPE)).astype(np.float32)
    x = schedule.sigmas[0] * noise[0]
    if stochastic:
      draws = iter(torch.from_numpy(noise[1:]))
      drawn = brownian if name == 'dpmpp_sde' else plain
      options = options | {'noise_sampler': drawn(draws)}

    def model(x, sigma):
      x0 = smooth_net.denoise(x.numpy(), sigma.numpy()[0])
      return torch.from_numpy(x0.astype(np.float32))

    expected = getattr(sampling, f'sample_{function}')(
      model,
      torch.from_numpy(x),
      torch.from_numpy(schedule.sigmas),
      disable=True,
      **options,
    )
    found = smooth_net.run(name, schedule, x, noise[1:], through_net=False)
    close(found, expected.numpy(), LIMIT, f'{name}, {sigmas}, {steps} steps')


@live
@pytest.mark.parametrize('name', K_DIFFUSION)
def test_k_diffusion(name, close):
  check_k_diffusion(name, 'trained', (2, 3, 20), close)
  check_k_diffusion(name, 'align_your_steps', (10,), close)


@live
@pytest.mark.slow
@pytest.mark.parametrize('name', K_DIFFUSION)
def test_k_diffusion_at_all_sigmas(name, close):
  for sigmas in sampling_schedule.SIGMAS:
    # Its SDE solvers fail in runs of one step.
    counts = (2, 50) if '_sde' in name else (1, 50)
    check_k_diffusion(name, sigmas, counts, close)
  check_k_diffusion(name, 'trained', (4, 999), close)


@live
@pytest.mark.parametrize(
  'name', [name for name in K_DIFFUSION if samplers.SAMPLERS[name].stochastic]
)
def test_k_diffusion_with_less_noise(name, close):
  check_k_diffusion(name, 'trained', (9,), close, eta=0.6)


@live
def test_sigmas_of_k_diffusion(close):
  torch = pytest.importorskip('torch')
  sampling = k_diffusion_files.load('sampling')
  trained = smooth_net.trained_sigmas(noise_schedule.Schedule())
  for sigmas in ('karras', 'exponential'):
    spacing = sampling_schedule.Spacing('linspace', sigmas=sigmas)
    schedule = sampling_schedule.make_sampling_schedule(
      noise_schedule.Schedule(), spacing, 'euler_ancestral', 17
    )
    function = getattr(sampling, f'get_sigmas_{sigmas}')
    expected = function(17, float(trained[0]), float(trained[-1]))
    assert np.allclose(schedule.sigmas, expected, rtol=1e-5)
  external = k_diffusion_files.load('external')
  levels = torch.from_numpy(trained.astype(np.float32))
  discrete = external.DiscreteSchedule(levels, quantize=False)
  for steps in (1, 7, 50, 999):
    schedule = sampling_schedule.make_sampling_schedule(
      noise_schedule.Schedule(),
      sampling_schedule.Spacing('sgm_uniform'),
      'dpm_2_ancestral',
      steps,
    )
    timesteps = torch.linspace(999, 0, steps + 1)[:-1]
    expected = sampling.append_zero(discrete.t_to_sigma(timesteps))
    assert np.allclose(schedule.sigmas, expected, rtol=1e-4)
    assert np.allclose(schedule.timesteps, timesteps, rtol=1e-5)
