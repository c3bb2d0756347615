"""Where a text is pooled: at the end-of-text token, as transformers does."""

import dataclasses

import numpy as np
import pytest

from sdxl_jax.checkpoints import source_checks
from sdxl_jax.models import clip
from sdxl_jax.weights.diffusers import config_json

# A learned word behind 'a', and '<|endoftext|>' as padding or '!' as such.
IDS = np.array(
  [
    [49406, 320, 49409, 49408, 49407, 49407, 49407],
    [49406, 320, 49409, 49407, 0, 0, 0],
    [49406, 320, 1000, 49407, 0, 49407, 0],
  ],
  np.int32,
)


@pytest.mark.parametrize(
  'eos, expected',
  [(2, [2, 2, 3]), (49407, [4, 3, 3]), (320, [1, 1, 1]), (7, [0, 0, 0])],
)
def test_the_first_end_or_the_first_largest_id(eos, expected):
  config = clip.CLIPTextConfig(vocab_size=49410, eos_token_id=eos)
  assert clip.end_of_text(config, IDS).tolist() == expected


@pytest.mark.parametrize('eos, read', [(2, 2), (49407, 49407), (None, 49407)])
def test_config_json(eos, read):
  written = config_json.write('text_encoder', clip.VIT_L)
  assert written['eos_token_id'] == 2
  written.pop('eos_token_id')
  if eos is not None:
    written['eos_token_id'] = eos
  config = config_json.read('text_encoder', written, 'here')
  assert config.eos_token_id == read
  again = config_json.write('text_encoder', config)
  assert again == written | {'eos_token_id': read}


def test_an_id_that_is_no_number():
  written = config_json.write('text_encoder', clip.VIT_L)
  for value in (None, [49407], '2'):
    with pytest.raises(ValueError, match='here has an invalid value'):
      config_json.read(
        'text_encoder', written | {'eos_token_id': value}, 'here'
      )


def test_both_ids_are_one_as_long_as_the_vocabulary_ends_there():
  config = clip.VIT_L
  other = dataclasses.replace(config, eos_token_id=49407)
  source_checks.check_same('text_encoder', config, other, 'there')
  grown = [dataclasses.replace(c, vocab_size=49410) for c in (config, other)]
  with pytest.raises(ValueError, match='eos_token_id: 2 here, 49407 there'):
    source_checks.check_same('text_encoder', *grown, 'there')
