"""Presets can be drawn and measured."""

import pytest

from sdxl_jax.evaluation import presets
from sdxl_jax.sampling import sample_request


@pytest.mark.parametrize('name', presets.PRESETS)
def test_settings_are_those_of_a_request(name):
  preset = presets.PRESETS[name]
  sample_request.check(preset.settings, name)
  sample_request.Request(prompt='a fox', **preset.settings)
  assert all(low < high for low, high in preset.bands.values())
  assert set(preset.bands) <= set(preset.metrics)


def test_departures_are_named():
  preset = presets.PRESETS['mlperf']
  settings = preset.settings | {'seed': 3}
  assert preset.departures(settings, 5000, True) == []
  other = settings | {'steps': 4, 'guidance_scale': 5.0}
  assert preset.departures(other, 10, False) == [
    'steps',
    'guidance_scale',
    '10 images in place of 5,000',
    'noise of seeds in place of the published latents',
  ]
  assert (
    presets.PRESETS['paper'].departures(
      {'steps': 50, 'height': 1024, 'width': 1024}, 10_000, False
    )
    == []
  )


def test_mlperf():
  """Its settings, as text_to_image/backend_pytorch.py has them."""
  settings = presets.PRESETS['mlperf'].settings
  assert settings['steps'] == 20 and settings['guidance_scale'] == 8
  assert settings['negative_prompt'].endswith(', blurry, nsfw, nude')
