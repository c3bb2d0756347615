"""Variants of the files of a net, as diffusers and we name them."""

import shutil

import pytest

from sdxl_jax.weights import formats, pretrained, read_options
from sdxl_jax.weights.diffusers import weight_files
from tests.support import conversions, golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
NET = 'diffusion_pytorch_model'


def choose(folder, variant=None, stem=NET):
  choice = weight_files.choose(folder, stem, variant)
  return choice.path.name, choice.note


@pytest.mark.parametrize(
  'names, variant, expected',
  [
    (['', '.fp16', '.bf16'], None, ''),
    (['', '.fp16', '.bf16'], 'bf16', '.bf16'),
    (['', '.non_ema'], 'non_ema', '.non_ema'),
    (['.fp16'], None, '.fp16'),
    (['.bf16'], None, '.bf16'),
    (['.bf16'], 'fp16', '.bf16'),
    ([''], 'fp16', ''),
  ],
)
def test_choice(tmp_path, names, variant, expected):
  for name in names:
    (tmp_path / f'{NET}{name}.safetensors').touch()
  path, note = choose(tmp_path, variant)
  assert path == f'{NET}{expected}.safetensors'
  # A line says so where another was expected.
  as_expected = expected == (f'.{variant}' if variant else '')
  assert (note is None) == as_expected


def test_several_and_none(tmp_path):
  for name in ('.fp16', '.bf16'):
    (tmp_path / f'{NET}{name}.safetensors').touch()
  for variant in (None, 'non_ema'):
    with pytest.raises(ValueError, match='variants bf16, fp16.*--variant'):
      choose(tmp_path, variant)
  with pytest.raises(FileNotFoundError, match='has no weights.*convert'):
    choose(tmp_path, stem='model')
  (tmp_path / 'flax_model.msgpack').touch()
  with pytest.raises(FileNotFoundError, match='nothing is read of.*msgpack'):
    choose(tmp_path, stem='model')
  with pytest.raises(FileNotFoundError, match='none not found.*incomplete'):
    choose(tmp_path / 'none')


@pytest.mark.parametrize(
  'name, tag',
  [
    (f'{NET}.safetensors.index.json', ''),
    (f'{NET}.safetensors.index.fp16.json', 'fp16'),
    (f'{NET}.fp16.safetensors.index.json', 'fp16'),
    (f'{NET}.bin', ''),
    (f'{NET}.fp16.bin', 'fp16'),
    (f'{NET}.bin.index.json', ''),
  ],
)
def test_indices_and_pickles(tmp_path, name, tag):
  (tmp_path / name).touch()
  for shard in ('', '.fp16'):
    (tmp_path / f'{NET}{shard}-00001-of-00002.safetensors').touch()
  assert weight_files.find_variants(tmp_path, NET) == {tag: tmp_path / name}
  # safetensors come before pickles.
  mark = f'.{tag}' if tag else ''
  better = tmp_path / f'{NET}{mark}.safetensors'
  better.touch()
  assert weight_files.find_variants(tmp_path, NET) == {tag: better}


def test_pickles_of_transformers(tmp_path):
  (tmp_path / 'pytorch_model.bin').touch()
  assert choose(tmp_path, stem='model')[0] == 'pytorch_model.bin'


def test_our_own_folders(tmp_path):
  """A folder of one variant is read again, sharded too, and says so."""
  folder, variant = tmp_path / 'folder', 'bf16'
  conversions.run(BASE, folder, 'diffusers', variant=variant, shard_gb=1e-3)
  index = f'{NET}.safetensors.index.{variant}.json'
  assert (folder / 'unet' / index).is_file()
  lines = conversions.run(folder, tmp_path / 'a.safetensors', 'single_file')
  assert lines.count(f'the variant {variant} is read') == 1
  again = tmp_path / 'again'
  conversions.run(tmp_path / 'a.safetensors', again, 'diffusers')
  conversions.check_same(
    conversions.tensors(again), conversions.tensors(folder)
  )


def test_a_variant_of_some_nets(tmp_path):
  """The others are read as they are; of none of them, it is an error."""
  folder = tmp_path / 'folder'
  shutil.copytree(BASE, folder)
  plain = folder / 'unet' / f'{NET}.safetensors'
  shutil.copy(plain, plain.with_name(f'{NET}.non_ema.safetensors'))
  options = read_options.ReadOptions(variant='non_ema')
  model = formats.open_model(folder, options=options)
  (note,) = model.notes
  assert note.startswith('vae, text_encoder, text_encoder_2: no variant')
  pretrained.check_complete(model)
  options = read_options.ReadOptions(variant='fp61')
  with pytest.raises(ValueError, match="'fp61'; it has non_ema: choose"):
    formats.open_model(folder, options=options)
  # Weights beside these may have other variants.
  assert formats.for_other(folder, options) == read_options.DEFAULT
  options = read_options.ReadOptions(variant='non_ema', prediction='v')
  assert formats.for_other(folder, options).variant == 'non_ema'
  assert formats.for_other(folder / 'unet', options).variant == 'non_ema'
  assert formats.for_other(folder / 'vae', options) == read_options.DEFAULT
