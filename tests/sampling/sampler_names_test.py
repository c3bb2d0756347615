"""Names that other programs have for our samplers and spacings."""

import pathlib

import pytest

from sdxl_jax import sampling
from sdxl_jax.diffusion import samplers, sampling_schedule
from sdxl_jax.sampling import sampler_names


def test_tables_have_our_names():
  for table in (sampler_names.A1111_SAMPLERS, sampler_names.COMFYUI_SAMPLERS):
    assert set(table.values()) <= set(samplers.SAMPLERS)
  for table in (
    sampler_names.A1111_SCHEDULES,
    sampler_names.COMFYUI_SCHEDULERS,
  ):
    for settings in table.values():
      sampling_schedule.Spacing(settings['spacing'], sigmas=settings['sigmas'])
  automatic = sampler_names.A1111_AUTOMATIC
  assert set(automatic) <= set(sampler_names.A1111_SAMPLERS)
  assert set(automatic.values()) <= set(sampler_names.A1111_SCHEDULES)


@pytest.mark.parametrize(
  'name, schedule, expected',
  [
    ('DPM++ 2M', 'Karras', ('dpmpp_2m', 'linspace', 'karras')),
    ('DPM++ 2M Karras', None, ('dpmpp_2m', 'linspace', 'karras')),
    (
      'DPM++ 2M SDE Heun Exponential',
      None,
      ('dpmpp_2m_sde_heun', 'linspace', 'exponential'),
    ),
    ('DPM++ 2M', None, ('dpmpp_2m', 'linspace', 'trained')),
    ('DPM++ 3M SDE', 'Automatic', ('dpmpp_3m_sde', 'linspace', 'exponential')),
    ('Euler a', 'Automatic', ('euler_ancestral', 'linspace', 'trained')),
    ('Euler', 'SGM Uniform', ('euler', 'sgm_uniform', 'trained')),
    ('DPM adaptive', 'Karras', None),
    ('Euler', 'Polyexponential', None),
  ],
)
def test_names_of_a1111(name, schedule, expected):
  found = sampler_names.of_a1111(name, schedule)
  assert (None if found is None else tuple(found.values())) == expected


def test_names_of_comfyui():
  found = sampler_names.of_comfyui('uni_pc_bh2', 'sgm_uniform')
  assert tuple(found.values()) == ('unipc', 'sgm_uniform', 'trained')
  assert sampler_names.of_comfyui('dpm_fast', 'karras') is None
  assert sampler_names.of_comfyui('euler', 'kl_optimal') is None


def test_the_guide_has_all_samplers():
  guide = pathlib.Path(sampling.__file__).with_name('README.md').read_text()
  rows = [line for line in guide.splitlines() if line.startswith('| `')]
  listed = {row.split('`')[1] for row in rows}
  assert set(samplers.SAMPLERS) <= listed
  for spacing in (*sampling_schedule.SPACINGS, *sampling_schedule.SIGMAS):
    assert f'`{spacing}`' in guide
