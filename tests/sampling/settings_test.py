"""Types of the settings of sampling, as a caller in Python may pass them."""

import numpy as np
import pytest

from sdxl_jax.sampling import settings


@pytest.mark.parametrize(
  'name, value, what',
  [
    ('steps', 2.5, 'a whole number'),
    ('steps', '3', 'a whole number'),
    ('steps', True, 'a whole number'),
    ('steps', None, 'a whole number'),
    ('guidance_scale', None, 'a number'),
    ('guidance_scale', '7', 'a number'),
    ('guidance_scale', np.float32('nan'), 'a finite number'),
    ('guidance_rescale', np.float32('inf'), 'a finite number'),
    ('weighted_prompts', 'yes', 'true or false'),
    ('crop_top_left', (0,), 'two whole numbers'),
    ('target_size', (0, 0.5), 'two whole numbers'),
    ('target_size', 5, 'two whole numbers'),
    ('guidance_interval', 0.5, 'two numbers'),
    ('guidance_interval', (1, 2, 3), 'two numbers'),
    ('guidance_interval', (1, 'x'), 'two numbers'),
  ],
)
def test_values_of_another_type(name, value, what):
  with pytest.raises(ValueError, match=f'^{name} is .*; it must be {what}$'):
    settings.check_type(settings.FIELDS[name], value)


@pytest.mark.parametrize(
  'name, value',
  [
    ('steps', np.int64(3)),
    ('height', None),
    ('guidance_scale', np.float32(7)),
    ('guidance_scale', 7),
    ('eta', None),
    ('long_prompts', np.bool_(True)),
    ('target_size', (np.int32(8), 8)),
    ('sampler', 'euler'),
    ('guidance_interval', (0, np.float32(5.42))),
  ],
)
def test_values_that_fit(name, value):
  settings.check_type(settings.FIELDS[name], value)


@pytest.mark.parametrize(
  'name',
  [
    'eta',
    'strength',
    'guidance_rescale',
    'refiner_start',
    'refiner_strength',
  ],
)
def test_shares_are_from_0_to_1(name):
  for value in (-0.1, 1.1):
    message = f'^{name} is {value}; it must be from 0 to 1$'
    with pytest.raises(ValueError, match=message):
      settings.SampleSettings(**{name: value})
  for value in (0.0, 1.0):
    settings.SampleSettings(**{name: value})
