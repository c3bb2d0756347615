"""Words for what a UNet predicts, in all spellings, and none silently wrong."""

import pytest

from sdxl_jax.weights import prediction_words, read_options
from sdxl_jax.weights.diffusers import edm_config


@pytest.mark.parametrize(
  'word, name, zero_snr',
  [
    ('v', 'v_prediction', False),
    ('V', 'v_prediction', False),
    ('v_prediction', 'v_prediction', False),
    ('v-prediction', 'v_prediction', False),
    ('V Prediction', 'v_prediction', False),
    ('vpred', 'v_prediction', False),
    ('velocity', 'v_prediction', False),
    ('v-zsnr', 'v_prediction', True),
    ('V_ZTSNR', 'v_prediction', True),
    ('v_prediction-zero-snr', 'v_prediction', True),
    ('epsilon', 'epsilon', False),
    ('EPS', 'epsilon', False),
    ('sample', 'sample', False),
    ('x0', 'sample', False),
    (' x-start\n', 'sample', False),
  ],
)
def test_spellings(word, name, zero_snr):
  assert prediction_words.read(word, 'here') == (name, zero_snr)


@pytest.mark.parametrize('word', ['', 'vv', 'zsnr', 'flow', '<v>', 3, None])
def test_an_unknown_word_is_an_error_that_lists_the_known(word):
  with pytest.raises(ValueError) as info:
    prediction_words.read(word, 'word of a.safetensors')
  message = str(info.value)
  assert message.startswith('word of a.safetensors is ')
  for part in ('v_prediction', 'velocity', 'x0', '--prediction=eps'):
    assert part in message
  assert '\n' not in message
  assert ('flow matching, taken from --prediction=flow' in message) == (
    word == 'flow'
  )


def test_what_the_user_decides():
  stored = {'prediction_type': 'epsilon', 'timestep_spacing': 'leading'}
  options = read_options.ReadOptions(prediction='v', zero_snr=True)
  assert options.schedule(stored) == {
    'prediction_type': 'v_prediction',
    'timestep_spacing': 'trailing',
    'rescale_betas_zero_snr': True,
  }
  marked = options.schedule(stored)
  options = read_options.ReadOptions(zero_snr=False)
  assert not options.schedule(marked)['rescale_betas_zero_snr']
  assert read_options.ReadOptions().schedule(marked) == marked


def test_what_the_user_cannot_decide():
  with pytest.raises(ValueError, match="prediction is 'w', which is none of"):
    read_options.ReadOptions(prediction='w')
  options = read_options.ReadOptions(zero_snr=True)
  with pytest.raises(ValueError, match='pass --prediction=v too'):
    options.schedule({'prediction_type': 'epsilon'})
  with pytest.raises(ValueError, match='continuous noise levels'):
    options.schedule(edm_config.COSXL)
