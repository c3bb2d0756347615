"""Images that a stopped command has written are known by their settings."""

import numpy as np
import pytest

from sdxl_jax.data import images
from sdxl_jax.sampling import drawn_already, model_flags, sample_request
from sdxl_jax.sampling.located import Located

MODELS = {name: o.default for name, o in model_flags.MODEL_OPTIONS.items()}
MODELS |= {'weights': 'SDXL', 'lora': ('a.safetensors:0.5',)}
DECIDED = MODELS | {'dtype': 'float32', 'vae_dtype': 'float32'}


def located(**fields):
  fields = {'prompt': 'a fox', 'crop_top_left': (0, 8)} | fields
  return Located('prompts.txt, line 3', sample_request.Request(**fields))


@pytest.fixture
def name(tmp_path):
  """A file as the command writes it, its sampler the model's own."""
  request = located(sampler='euler', seed=3).request
  image = np.zeros((8, 16, 3), np.uint8)
  text = sample_request.to_png_metadata(request, DECIDED, image.shape)
  images.save(tmp_path / 'a.png', image, text)
  return str(tmp_path / 'a.png')


def test_what_is_missing_is_found(name):
  asked = [located(seed=s) for s in (3, 4, 5)]
  names = [name, f'{name}-4.png', f'{name}-5.png']
  assert drawn_already.find(asked, names, MODELS) == [1, 2]
  # The command may say what the model had decided.
  asked = [located(seed=3, sampler='euler', height=8, width=16)]
  assert drawn_already.find(asked, [name], DECIDED) == []


@pytest.mark.parametrize(
  'fields, models, message',
  [
    ({'seed': 4}, {}, r'seed: 3, and 4 is asked for: choose another --output'),
    ({'prompt': 'a pig'}, {}, "prompt: 'a fox', and 'a pig'"),
    ({'crop_top_left': (8, 0)}, {}, r'crop_top_left: \(0, 8\), and \(8, 0\)'),
    ({'width': 24}, {}, 'width: 16, and 24'),
    ({'sampler': 'heun'}, {}, "sampler: 'euler', and 'heun'"),
    ({}, {'weights': 'other'}, "weights: 'SDXL', and 'other'"),
    ({}, {'lora': ()}, r"lora: \['a.safetensors:0.5'\], and \(\)"),
    ({}, {'refiner': 'R'}, "refiner: None, and 'R'"),
    ({}, {'dtype': 'bfloat16'}, "dtype: 'float32', and 'bfloat16'"),
  ],
)
def test_other_settings_are_refused(name, fields, models, message):
  """So that one folder holds images of one kind."""
  asked = [located(**({'seed': 3} | fields))]
  with pytest.raises(ValueError, match=f'line 3: .*a.png is .*{message}'):
    drawn_already.find(asked, [name], MODELS | models)


def test_other_images_are_refused(name):
  images.save(name, np.zeros((8, 16, 3), np.uint8))
  with pytest.raises(ValueError, match='a.png: no text'):
    drawn_already.find([located(seed=3)], [name], MODELS)


def test_images_of_an_earlier_version(tmp_path):
  """They lack settings that came later, and were made with the defaults."""
  request = located(sampler='euler', seed=3).request
  older = {n: x for n, x in DECIDED.items() if n != 'controlnet'}
  image = np.zeros((8, 16, 3), np.uint8)
  text = sample_request.to_png_metadata(request, older, image.shape)
  images.save(tmp_path / 'old.png', image, text)
  asked, names = [located(seed=3)], [str(tmp_path / 'old.png')]
  assert drawn_already.find(asked, names, MODELS) == []
  with pytest.raises(ValueError, match="another controlnet: None, and .'C'"):
    drawn_already.find(asked, names, MODELS | {'controlnet': ['C']})
