"""Noise levels against recorded and live diffusers schedulers."""

import json

import numpy as np
import pytest

from sdxl_jax.diffusion import (
  noise_schedule,
  sampler_traits,
  samplers,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import scheduler_config
from tests.support import schedulers

SDXL = noise_schedule.Schedule()
TRAILING = sampling_schedule.Spacing(kind='trailing')


@pytest.fixture(scope='module')
def tables(golden):
  return np.load(golden / 'schedule' / 'tables.npz')


def test_every_sampler_has_levels():
  for sampler in samplers.SAMPLERS:
    sampling_schedule.make_sampling_schedule(SDXL, TRAILING, sampler, 5)


def test_trained_schedule(tables, close):
  zero = noise_schedule.Schedule(zero_terminal_snr=True)
  for prefix, trained in (('', SDXL), ('zsnr/', zero)):
    a = noise_schedule.alphas_cumprod(trained)
    close(noise_schedule.betas(trained), tables[prefix + 'betas'], 1e-5, prefix)
    close(a, tables[prefix + 'alphas_cumprod'], 2e-6, prefix)
  assert noise_schedule.alphas_cumprod(zero)[-1] == 0
  assert noise_schedule.trained_sigmas(zero)[-1] == np.inf
  close(noise_schedule.trained_sigmas(SDXL), tables['sigmas_all'], 1e-5)


def test_linear_betas():
  betas = noise_schedule.betas(noise_schedule.Schedule(beta_schedule='linear'))
  assert betas[[0, -1]].tolist() == [0.00085, 0.012]
  assert np.allclose(np.diff(betas), (0.012 - 0.00085) / 999)


def families(golden):
  """(sampler, config, prefix of the arrays, steps) of each recorded run."""
  index = json.loads((golden / 'schedule' / 'tables.json').read_text())
  names = np.load(golden / 'schedule' / 'tables.npz').files
  for key in names:
    if not key.endswith('/timesteps'):
      continue
    family, spacing, steps, _ = key.split('/')
    config = index['families'][family]
    sampler = schedulers.SAMPLERS.get(config['class'])
    config = config['config'] | {'timestep_spacing': spacing}
    if sampler:
      yield sampler, config, key.removesuffix('timesteps'), int(steps)


def once(array, sampler):
  """Heun's scheduler lists inner levels twice, for its two calls."""
  return np.append(array[:-1:2], array[-1]) if sampler == 'heun' else array


def test_recorded_levels(golden, tables, close, tolerances):
  runs = list(families(golden))
  assert len({sampler for sampler, *_ in runs}) == 7
  for sampler, config, prefix, steps in runs:
    levels = sampling_schedule.make_sampling_schedule(
      *scheduler_config.read(config, sampler), sampler, steps
    )
    timesteps = once(tables[prefix + 'timesteps'], sampler)
    limit = 1e-3 if (timesteps % 1).any() else 0
    assert np.abs(levels.timesteps - timesteps).max() <= limit, prefix

    init_scale = levels.init_scale
    if sampler_traits.SAMPLER_TRAITS[
      sampler
    ].variance_preserving:  # whose x is x / sqrt(1 + sigma^2)
      init_scale = init_scale / np.sqrt(1 + levels.sigmas[0] ** 2)
    expected = tables[prefix + 'init_noise_sigma']
    assert init_scale == pytest.approx(expected, 1e-5), prefix

    if prefix + 'sigmas' in tables:
      sigmas = once(tables[prefix + 'sigmas'], sampler)
      close(levels.sigmas, sigmas, tolerances['schedule_sigmas_rel'], prefix)
      # Each of them: the reference rescales to zero SNR in float32.
      assert np.allclose(levels.sigmas, sigmas, rtol=2e-5, atol=0), prefix


def test_where_the_refiner_takes_over(golden, base_config):
  """Calls that the reference leaves to the base; Heun stops between two."""
  text = (golden / 'schedule' / 'cutoffs.json').read_text()
  cases = [c for c in json.loads(text)['cases'] if 'cut' in c]
  seen = set()
  for case in cases:
    sampler = case['family'].removesuffix('_karras')
    if sampler not in samplers.SAMPLERS:
      continue
    seen.add(case['family'])
    config = base_config | {
      'timestep_spacing': case['spacing'],
      'use_karras_sigmas': case['family'].endswith('_karras'),
    }
    settings = scheduler_config.read(config, sampler)
    levels = sampling_schedule.make_sampling_schedule(
      *settings, sampler, case['steps']
    )
    cut = sampling_schedule.steps_until(levels, case['cut'])
    calls = 2 * cut - 1 if sampler == 'heun' else cut
    assert calls == case['base_calls'], case
  assert len(seen) == 7


@pytest.mark.torch
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize('name', schedulers.SAMPLERS)
@pytest.mark.parametrize('sigmas', ['trained', 'karras', 'exponential', 'beta'])
@pytest.mark.parametrize('kind', ['leading', 'trailing', 'linspace'])
def test_live_levels(name, sigmas, kind, base_config):
  scheduler = getattr(pytest.importorskip('diffusers'), name)
  sampler = schedulers.SAMPLERS[name]
  config = base_config | {'timestep_spacing': kind}
  respaced = 'karras', 'exponential', 'beta'
  config |= {f'use_{s}_sigmas': s == sigmas for s in respaced}
  reference = scheduler.from_config(config)
  settings = scheduler_config.read(config, sampler)
  for steps in (1, 2, 7, 16, 48, 333):
    if steps > 50 and sampler in ('lcm', 'tcd'):
      continue
    reference.set_timesteps(steps)
    levels = sampling_schedule.make_sampling_schedule(*settings, sampler, steps)
    timesteps = once(reference.timesteps.numpy(), sampler)
    assert np.abs(levels.timesteps - timesteps).max() <= 2e-3, steps
    if hasattr(reference, 'sigmas'):
      expected = once(reference.sigmas.numpy(), sampler)
      assert np.allclose(levels.sigmas, expected, rtol=1e-5, atol=0), steps


@pytest.fixture
def base_config(keys):
  """The scheduler of the published SDXL base model."""
  path = keys / 'configs' / 'base' / 'scheduler' / 'scheduler_config.json'
  return json.loads(path.read_text())


def test_published_config_is_the_default(base_config):
  settings = scheduler_config.read(base_config, 'euler')
  assert settings == (SDXL, sampling_schedule.Spacing())


def test_ddim_ends_at_the_smallest_sigma(base_config):
  settings = scheduler_config.read(base_config, 'ddim')
  levels = sampling_schedule.make_sampling_schedule(*settings, 'ddim', 5)
  assert levels.sigmas[-1] == levels.trained_sigmas[0]
  assert levels.final_scale == pytest.approx(0.99957, 1e-5)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'prediction_type': 'flow_prediction'}, 'prediction_type'),
    ({'beta_schedule': 'squaredcos_cap_v2'}, 'scaled_linear'),
    ({'use_lu_lambdas': True}, 'use_lu_lambdas'),
    ({'trained_betas': [0.1]}, 'trained_betas'),
    ({'solver_order': 3}, 'solver_order'),
    ({'timestep_spacing': 'log'}, 'trailing'),
  ],
)
def test_unsupported_config(base_config, change, message):
  with pytest.raises(ValueError, match=message):
    scheduler_config.read(base_config | change, 'dpmpp_2m')


@pytest.mark.parametrize('prediction', noise_schedule.PREDICTIONS)
def test_what_is_written_is_read(prediction):
  settings = noise_schedule.Schedule(prediction=prediction), TRAILING
  written = scheduler_config.write(*settings)
  trained, spacing = scheduler_config.read(written, 'euler')
  assert trained == settings[0] and spacing.kind == 'trailing'


def test_config_of_other_noise():
  config = {'_class_name': 'FlowMatchHeunDiscreteScheduler', 'shift': 3.0}
  with pytest.raises(ValueError, match='names FlowMatch.* on other noise'):
    scheduler_config.read(config | {'num_train_timesteps': 1000}, 'euler')


def test_incomplete_config(base_config):
  del base_config['beta_start']
  with pytest.raises(ValueError, match="lacks 'beta_start'"):
    scheduler_config.read(base_config, 'euler')


@pytest.mark.parametrize('steps', [0, -1, 1001])
def test_steps_out_of_range(steps):
  with pytest.raises(
    ValueError, match=f'{steps}; the limit of euler is 1 to 1000'
  ):
    sampling_schedule.make_sampling_schedule(SDXL, TRAILING, 'euler', steps)


def test_all_1000_steps_fit_only_trailing():
  levels = sampling_schedule.make_sampling_schedule(
    SDXL, TRAILING, 'dpmpp_2m', 1000
  )
  assert (levels.timesteps == np.arange(1000)[::-1]).all()
  for sampler in ('euler', 'dpmpp_2m'):
    with pytest.raises(ValueError, match="fewer steps or the spacing 'tra"):
      sampling_schedule.make_sampling_schedule(
        SDXL, sampling_schedule.Spacing(), sampler, 1000
      )


@pytest.mark.parametrize(
  'sampler', ['euler_ancestral', 'ddim', 'dpmpp_2m_sde', 'dpmpp_2s_ancestral']
)
def test_eta_is_the_share_of_fresh_noise(sampler):
  none, some, much = (
    sampling_schedule.make_sampling_schedule(SDXL, TRAILING, sampler, 9, eta)
    for eta in (0.0, 0.5, 1.0)
  )
  assert (none.sigmas_down == none.sigmas[1:]).all() and (
    none.sigmas_up == 0
  ).all()
  assert ((0 < some.sigmas_up) & (some.sigmas_up < much.sigmas_up))[:-1].all()
  for levels in (some, much):
    variance = levels.sigmas_down**2 + levels.sigmas_up**2
    assert np.allclose(variance, levels.sigmas[1:] ** 2, rtol=1e-5)
  with pytest.raises(ValueError, match='eta is 1.5; it must be from 0 to 1'):
    sampling_schedule.make_sampling_schedule(SDXL, TRAILING, sampler, 9, 1.5)


@pytest.mark.parametrize('sampler', ['euler', 'dpmpp_2m'])
def test_edm_sigmas(sampler):
  """Of rho 3 between all trained ones, as sgm's api has them."""
  spacing = sampling_schedule.Spacing(sigmas='edm')
  levels = sampling_schedule.make_sampling_schedule(SDXL, spacing, sampler, 9)
  expected = np.linspace(14.614641 ** (1 / 3), 0.029167 ** (1 / 3), 9) ** 3
  assert np.allclose(levels.sigmas[:-1], expected, rtol=1e-4)
  assert levels.sigmas[-1] == 0
  assert np.abs(levels.timesteps[[0, -1]] - [999, 0]).max() < 1e-3


def test_unknown_names():
  with pytest.raises(ValueError, match="'plms'; choose one of .*'heun'"):
    sampling_schedule.make_sampling_schedule(SDXL, TRAILING, 'plms', 10)
  with pytest.raises(ValueError, match="'even'; choose one of"):
    sampling_schedule.Spacing(kind='even')
  with pytest.raises(ValueError, match="'flux'; choose one of .*'x0'"):
    noise_schedule.Schedule(prediction='flux')
  with pytest.raises(ValueError, match='beta_end 2'):
    noise_schedule.Schedule(beta_end=2)
