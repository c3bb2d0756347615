"""Settings of PEFT beside the tensors of a LoRA, sound and broken"""

import pytest

from sdxl_jax.weights.lora import alphas

LAYER = ('unet', 'mid_block.proj_in')


def alpha_of(tmp_path, text, rank=4):
  """Returns the alpha that adapter_config.json with a text has."""
  (tmp_path / 'adapter_config.json').write_text(text)
  settings = alphas.read(tmp_path / 'adapter_model.safetensors', True, {})
  return alphas.alpha_of(settings, LAYER, rank)


@pytest.mark.parametrize(
  'text, rank, alpha',
  [
    ('{"r": 0, "lora_alpha": 8}', 4, 8.0),
    ('{"r": 16, "lora_alpha": 8}', None, 0.5),
    ('{"lora_alpha": 8, "alpha_pattern": {"proj_in": 2.5}}', 4, 2.5),
    ('{"lora_alpha": 8, "alpha_pattern": {"a{99999999999}": 2}}', 4, 8.0),
    ('{"lora_alpha": 8, "alpha_pattern": {"(proj_in": 2}}', 4, 8.0),
    ('{"lora_alpha": 8, "alpha_pattern": null}', 4, 8.0),
    ('{"lora_alpha": null}', 4, None),
    ('{}', None, None),
  ],
)
def test_alpha(tmp_path, text, rank, alpha):
  assert alpha_of(tmp_path, text, rank) == alpha


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"lora_alpha": NaN}', 'beside it is not JSON .it contains NaN'),
    ('{"lora_alpha": -Infinity}', 'not JSON .it contains -Infinity'),
    ('{"lora_alpha": 1e999}', 'mid_block.proj_in is inf, which is no number'),
    ('{"lora_alpha": %s}' % ('9' * 400), 'is 9{50}, which is no number'),
    ('{"lora_alpha": [8]}', r'lora_alpha of .* is \[8\], which is no number'),
    ('{"lora_alpha": true}', 'is True, which is no number'),
    ('{"lora_alpha": 8, "r": null}', 'r of the layer .* is None'),
    ('{"lora_alpha": 8, "r": 0}', r'is 0, which is no number from 1 to 1e\+30'),
    ('{"lora_alpha": 8, "r": {}}', 'is {}, which is no number'),
    ('{"lora_alpha": 8, "alpha_pattern": [1]}', r'alpha_pattern is \[1\], and'),
    ('{"lora_alpha": 8, "rank_pattern": "x"}', 'rank_pattern is x, and must'),
    ('{"lora_alpha": 8, "rank_pattern": {"proj_in": 0}}', 'r of .* is 0, '),
    ('[8]', 'adapter_config.json beside it is not a JSON object'),
    ('[' * 10**5, 'adapter_config.json beside it is not JSON'),
  ],
)
def test_broken_settings(tmp_path, text, message):
  with pytest.raises(ValueError, match=message):
    alpha_of(tmp_path, text, None)
