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


def test_mlperf():
  """Its settings, as text_to_image/backend_pytorch.py has them."""
  settings = presets.PRESETS['mlperf'].settings
  assert settings['steps'] == 20 and settings['guidance_scale'] == 8
  assert settings['negative_prompt'].endswith(', blurry, nsfw, nude')
