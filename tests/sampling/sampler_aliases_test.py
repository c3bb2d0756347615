"""Names that other programs have for our samplers and spacings."""

import pathlib

import pytest

from sdxl_jax import sampling
from sdxl_jax.diffusion import samplers, sampling_schedule
from sdxl_jax.sampling import sampler_aliases


def test_tables_have_our_names():
  assert set(sampler_aliases.SAMPLERS.values()) <= set(samplers.SAMPLERS)
  for settings in sampler_aliases.SCHEDULES.values():
    sampling_schedule.Spacing(settings['spacing'], sigmas=settings['sigmas'])
  automatic = sampler_aliases.AUTOMATIC
  assert set(automatic) <= set(sampler_aliases.SAMPLERS)
  assert set(automatic.values()) <= set(sampler_aliases.SCHEDULES)


@pytest.mark.parametrize(
  'name, schedule, expected',
  [
    ('DPM++ 2M', 'Karras', ('dpmpp_2m', 'linspace', 'karras')),
    (
      'DPM++ 2M SDE Heun Exponential',
      'Uniform',
      ('dpmpp_2m_sde_heun', 'linspace', 'exponential'),
    ),
    ('DPM++ 2M', 'Uniform', ('dpmpp_2m', 'linspace', 'trained')),
    ('DPM++ 3M SDE', 'Automatic', ('dpmpp_3m_sde', 'linspace', 'exponential')),
    ('Euler a', 'Automatic', ('euler_ancestral', 'linspace', 'trained')),
    ('Euler', 'SGM Uniform', ('euler', 'sgm_uniform', 'trained')),
    ('DDIM', 'Automatic', ('ddim', 'leading', 'trained')),
    ('uni_pc_bh2', 'sgm_uniform', ('unipc', 'sgm_uniform', 'trained')),
    (
      'dpmpp_2m_sde_heun_gpu',
      'beta',
      ('dpmpp_2m_sde_heun', 'linspace', 'beta'),
    ),
  ],
)
def test_names(name, schedule, expected):
  chosen = sampler_aliases.sampler(name)
  found = sampler_aliases.schedule(schedule, name) | chosen
  assert found == dict(zip(('sampler', 'spacing', 'sigmas'), expected))


def test_names_that_we_lack():
  for name in ('DPM adaptive', 'dpm_fast', 'Karras', 'uni_pc', ''):
    assert sampler_aliases.sampler(name) is None
  for name in ('Polyexponential', 'kl_optimal', ''):
    assert sampler_aliases.schedule(name) is None


def test_the_guide_has_all_samplers():
  guide = pathlib.Path(sampling.__file__).with_name('README.md').read_text()
  rows = [line for line in guide.splitlines() if line.startswith('| `')]
  listed = {row.split('`')[1] for row in rows}
  assert set(samplers.SAMPLERS) <= listed
  for spacing in (*sampling_schedule.SPACINGS, *sampling_schedule.SIGMAS):
    assert f'`{spacing}`' in guide
