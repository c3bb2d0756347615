"""Paths that hold no weights: each is named, with what to pass instead."""

import pathlib

import pytest

from sdxl_jax.checkpoints import export, orbax_checkpoint
from sdxl_jax.weights import formats

HUB = 'stabilityai/stable-diffusion-xl-base-1.0'


@pytest.mark.parametrize(
  'path, message',
  [
    (HUB, f'not exist here.*hub, .*`hf download {HUB} --local-dir DIR`'),
    (f'https://huggingface.co/{HUB}', f'address.*`hf download {HUB} --local'),
    (
      f'https://huggingface.co/{HUB}/resolve/main/a.safetensors',
      'is an address.*download it, and pass the file',
    ),
    ('hf://a/b', 'is an address'),
    ('none', 'none does not exist; . has .*cache'),
    ('cache/none', 'none does not exist; cache has models--a--b'),
    ('a/b/c', 'a/b/c does not exist, nor its folder'),
    (
      'cache/models--a--b',
      'cache of the Hugging Face.*pass .*/snapshots/7',
    ),
    ('parts', 'parts has unet, text_encoder_2 and no model_index.json'),
    ('files', 'pass the file itself, such as .*files/x.safetensors'),
    ('outer', 'outer is not the folder of a model: pass .*outer/inner'),
    ('language', 'config.json describes none of the nets of SDXL'),
    ('empty', 'no diffusers folder, no single file, no workdir'),
  ],
)
def test_what_it_is(path, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for folder in (
    'cache/models--a--b/snapshots/7',
    'parts/unet',
    'parts/text_encoder_2',
    'files',
    'outer/inner',
    'language',
    'empty',
  ):
    pathlib.Path(folder).mkdir(parents=True)
  pathlib.Path('files/x.safetensors').touch()
  pathlib.Path('outer/inner/model_index.json').touch()
  config = '{"architectures": ["LlamaForCausalLM"]}'
  pathlib.Path('language/config.json').write_text(config)
  # The same of every command.
  for read in formats.open_model, export.open_source, orbax_checkpoint.find:
    with pytest.raises(FileNotFoundError, match=message) as info:
      read(path)
    assert '\n' not in str(info.value)
