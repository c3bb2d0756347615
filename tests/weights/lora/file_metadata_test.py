"""Metadata of LoRA files, and their hashes as kohya's scripts compute them."""

import hashlib
import json

import numpy as np
import pytest

from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.lora import file_metadata, merge
from tests.support import adapters, folders, golden_sets

TINY = golden_sets.SETS[0] / 'tiny' / 'base'


@pytest.fixture(scope='module')
def base():
  return {'unet': folders.load_component(TINY, 'unet')[1]}


@pytest.mark.parametrize(
  'kind, layers, expected',
  [
    ('lora', 'to_q', ('networks.lora', '3', '1.5', None)),
    (
      'lora',
      'to_q|conv2',
      ('networks.lora', '3', '1.5', {'conv_dim': '3', 'conv_alpha': '1.5'}),
    ),
    (
      'dora',
      'to_q',
      ('lycoris.kohya', '3', '1.5', {'algo': 'lora', 'dora_wd': 'True'}),
    ),
    ('loha', 'to_q', ('lycoris.kohya', '2', '1.5', {'algo': 'loha'})),
    ('lokr', 'to_q', ('lycoris.kohya', '1', '1.5', {'algo': 'lokr'})),
    ('full', 'to_q', ('lycoris.kohya', 'Dynamic', 'Dynamic', {'algo': 'full'})),
  ],
)
def test_network(base, kind, layers, expected):
  made = adapters.made(base, kind, layers=f'unet/.*/({layers})')
  metadata = file_metadata.describe('kohya', made)
  module, dim, alpha, args = expected
  assert metadata['ss_network_module'] == module
  assert metadata['ss_network_dim'] == dim
  assert metadata['ss_network_alpha'] == alpha
  assert json.loads(metadata.get('ss_network_args', 'null')) == args
  assert file_metadata.describe('diffusers', made) == {'format': 'pt'}


def test_several_kinds(base):
  loha = adapters.made(base, 'loha', layers='unet/.*/to_q')
  lora = adapters.made(base, 'lora', layers='unet/.*/to_k')
  both = merge.Lora(lora.factors, others=loha.others)
  metadata = file_metadata.describe('kohya', both)
  assert metadata['ss_network_dim'] == 'Dynamic'
  assert 'ss_network_args' not in metadata


def test_hashes(tmp_path):
  """Of a file with the metadata that a name in ss_ has, and no other."""
  rng = np.random.default_rng(0)
  arrays = {f'x{i}': rng.standard_normal((50, 1000)) for i in range(4)}
  metadata = {'ss_seed': '1', 'modelspec.title': 'a', 'sshs_x': 'b'}
  found = file_metadata.hashes(arrays, metadata)
  tensors = {n: safetensors_file.from_array(x) for n, x in arrays.items()}
  header = safetensors_file.make_header(tensors, metadata={'ss_seed': '1'})
  data = b''.join(x.tobytes() for x in arrays.values())
  whole = hashlib.sha256(data).hexdigest()
  assert found['sshs_model_hash'] == whole
  part = (header + data)[0x100000 : 0x100000 + 0x10000]
  assert found['sshs_legacy_hash'] == hashlib.sha256(part).hexdigest()[:8]
  assert len(part) == 0x10000
