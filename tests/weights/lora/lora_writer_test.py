"""Files of all kinds of changes, written and read again."""

import json

import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.models import lora
from sdxl_jax.weights.lora import (
  lora_file,
  lora_writer,
  merge,
  published_parts,
  trained_factors,
)
from tests.support import adapters, folders, golden_sets

TINY = golden_sets.SETS[0] / 'tiny' / 'base'
PEFT_KINDS = ('lora', 'dora', 'loha', 'lokr', 'lokr_whole')


@pytest.fixture(scope='module')
def base():
  nets = 'unet', 'text_encoder', 'text_encoder_2'
  return {net: folders.load_component(TINY, net)[1] for net in nets}


def assert_same(actual, expected):
  """Asserts that two files change the same tensors by the same numbers."""
  a, b = actual.changes(), expected.changes()
  assert a.keys() == b.keys()
  for key, delta in b.items():
    parts = published_parts.parts_of(delta)
    again = published_parts.parts_of(a[key])
    # PEFT has no alpha where it is the rank, and ours always has one.
    assert published_parts.scale_of(a[key]) == published_parts.scale_of(delta)
    for part in parts.keys() - {'alpha'}:
      np.testing.assert_array_equal(again[part], parts[part], f'{key} {part}')


@pytest.mark.parametrize('kind', adapters.KINDS)
@pytest.mark.parametrize('dialect', ['kohya', 'kohya_diffusers'])
def test_a_kind_and_back(base, kind, dialect, tmp_path):
  made = adapters.made(base, kind)
  path = tmp_path / 'a.safetensors'
  lora_writer.save(path, made, base, dialect)
  read = lora_file.load(path, base)
  assert read.key_format == dialect
  assert_same(read, made)
  again = tmp_path / 'b.safetensors'
  lora_writer.save(again, read, base)
  assert again.read_bytes() == path.read_bytes()
  half = tmp_path / 'half.safetensors'
  lora_writer.save(half, read, base, dtype='float16')
  types = {x.dtype for x in safetensors.numpy.load_file(half).values()}
  assert types == {np.dtype('float16')}


@pytest.mark.parametrize('kind', PEFT_KINDS)
def test_a_kind_in_peft_and_back(base, kind, tmp_path):
  made = adapters.made(base, kind).of(['unet'])
  path = tmp_path / 'adapter_model.safetensors'
  lora_writer.save(path, made, base, 'peft')
  assert_same(lora_file.load(tmp_path, base), made)
  config = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert config['peft_type'] == kind.partition('_')[0].upper().replace('D', 'L')
  assert config.get('use_dora', False) == (kind == 'dora')
  factors = {'lokr': -1, 'lokr_whole': 2}
  assert config.get('decompose_factor') == factors.get(kind)


@pytest.mark.parametrize(
  'kind, dialect, message',
  [
    ('loha', 'diffusers', 'than diffusers has names for, by LoHa; the first'),
    ('dora', 'diffusers_old', r'by LoRA with magnitudes \(DoRA\)'),
    ('full', 'peft', 'by whole differences'),
    ('lora', 'mine', "dialect is 'mine'; choose one of"),
  ],
)
def test_what_a_dialect_has_no_names_for(
  base, kind, dialect, message, tmp_path
):
  made = adapters.made(base, kind).of(['unet'])
  path = tmp_path / 'x.safetensors'
  with pytest.raises(ValueError, match=message):
    lora_writer.save(path, made, base, dialect)
  assert not path.exists()


def test_several_kinds_are_one_file_of_kohya(base, tmp_path):
  """And two of PEFT."""
  made = [adapters.made(base, 'loha'), adapters.made(base, 'lora')]
  unet, text = made[0].of(['unet']), made[1].of(['text_encoder'])
  both = merge.Lora(text.factors, others=unet.others)
  lora_writer.save(tmp_path / 'a.safetensors', both, base)
  assert_same(lora_file.load(tmp_path / 'a.safetensors', base), both)
  one_net = merge.Lora(made[1].of(['unet']).factors, others=unet.others)
  few = dict(list(one_net.others.items())[:3])
  mixed = merge.Lora(dict(list(one_net.factors.items())[5:9]), others=few)
  with pytest.raises(ValueError, match='PEFT keeps one kind in a file'):
    lora_writer.save(tmp_path / 'b.safetensors', mixed, base, 'peft')


def test_lokr_that_peft_splits_in_another_way(base, tmp_path):
  """Of 12 by 4, PEFT makes 4 times 3, and LyCORIS 3 times 4."""
  targets = (lora.Target('lokr', adapters.UNET, 1, 1.0, 'lokr', factor=4),)
  tree = adapters.tree(base, targets)
  made = trained_factors.from_training(tree, targets)
  with pytest.raises(ValueError, match='PEFT splits all layers of LoKr by one'):
    lora_writer.save(tmp_path / 'x.safetensors', made, base, 'peft')


def test_alphas_keep_their_digits():
  parts = {'down': np.zeros((3, 4), np.float16)}
  assert published_parts.with_alpha(parts, 1.5)['alpha'].dtype == np.float16
  assert published_parts.with_alpha(parts, 0.1)['alpha'].dtype == np.float32
