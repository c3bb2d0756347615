"""LoRAs joined, resized, and extracted from the difference of two models."""

import numpy as np
import pytest

from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.lora import combining, deltas, low_rank, merge
from tests.support import adapters, folders, golden_sets

TINY = golden_sets.SETS[0] / 'tiny' / 'base'
Ranks = low_rank.Ranks


@pytest.fixture(scope='module')
def base():
  nets = 'unet', 'text_encoder'
  return {net: folders.load_component(TINY, net)[1] for net in nets}


@pytest.fixture(scope='module')
def shapes(base):
  return {key: at.shape for key, at in merge.tensors_of(base).items()}


def products(lora, shapes):
  return {k: d.product(shapes[k]) for k, d in lora.changes().items()}


def assert_close(actual, expected, limit=1e-5):
  assert actual.keys() == expected.keys()
  for key, whole in expected.items():
    bound = limit * max(np.abs(whole).max(), 1e-3)
    np.testing.assert_allclose(actual[key], whole, 0, bound, err_msg=str(key))


def test_files_joined_side_by_side(base, shapes):
  """Also where one of them has a layer that the other lacks."""
  a = adapters.made(base, 'lora')
  b = adapters.made(base, 'lora', layers=adapters.UNET, alpha=4.0)
  made = combining.join([(a, 0.5), (b, -2.0)], shapes)
  assert not made.others
  first, second = products(a, shapes), products(b, shapes)
  expected = {k: 0.5 * x - 2 * second.get(k, 0) for k, x in first.items()}
  assert_close(products(made, shapes), expected)
  ranks = {net: set() for net in base}
  for (net, _), factors in made.factors.items():
    ranks[net].add(len(factors.down))
  assert ranks == {'unet': {6}, 'text_encoder': {3}}
  # By SVD to a smaller rank, as the best of their sum.
  fewer = combining.resize(made, shapes, Ranks(4))
  whole = products(made, shapes)
  for key, delta in list(fewer.changes().items())[::25]:
    matrix = whole[key].reshape(len(whole[key]), -1)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    kept = (u[:, :4] * s[:4]) @ vt[:4]
    found = delta.product(kept.shape)
    np.testing.assert_allclose(found, kept, 0, 1e-5 * max(s[0], 1))


@pytest.mark.parametrize('kind', ['loha', 'lokr', 'full'])
def test_other_kinds_become_factors(base, shapes, kind):
  """Alone with a weight they stay what they are; with a rank they do not."""
  layers = r'unet/.*/attn1/to_[qkv]'
  a = adapters.made(base, kind, layers=layers)
  half = combining.join([(a, 0.5)], shapes)
  assert {type(d) for d in half.others.values()} == {
    type(d) for d in a.others.values()
  }
  whole = products(a, shapes)
  assert_close(products(half, shapes), {k: 0.5 * x for k, x in whole.items()})
  made = combining.resize(a, shapes, Ranks(4096))
  assert not made.others
  assert_close(products(made, shapes), whole, 2e-5)
  b = adapters.made(base, 'lora', layers=layers)
  with pytest.raises(ValueError, match='whose sum has no factors: pass --rank'):
    combining.join([(a, 1.0), (b, 1.0)], shapes)
  both = combining.join([(a, 1.0), (b, 1.0)], shapes, Ranks(4))
  added = products(b, shapes)
  expected = {key: x + added[key] for key, x in whole.items()}
  assert_close(products(both, shapes), expected)


def test_changes_that_depend_on_the_base(base, shapes):
  made = adapters.made(base, 'dora', layers=adapters.UNET)
  for call in (
    lambda: combining.resize(made, shapes, Ranks(4)),
    lambda: combining.join([(made, 0.5)], shapes),
  ):
    with pytest.raises(ValueError, match=r'depends on the weights .* --base'):
      call()
  assert combining.join([(made, 1.0)], shapes).changes().keys()


def test_extraction_of_a_trained_difference(base, shapes):
  """Rank 3 comes back from two models, by a few digits of their weights."""
  layers = 'unet/.*/(attn1/to_q|conv2|proj_in)'
  trained = adapters.made(base, 'lora', layers=layers)
  before = {'unet': tensor_names.tensors(base['unet'])}
  after = {'unet': dict(before['unet'])}
  for (_, name), delta in trained.changes().items():
    weight = delta.merged(before['unet'][name].read(), 1.0)
    after['unet'][name] = safetensors_file.from_array(weight)
  kernels = [('unet', f'{n}.weight') for _, n in merge.kernels_of(base)]
  made = combining.extract(after, before, kernels, Ranks(3))
  assert made.factors.keys() == trained.factors.keys() and not made.notes
  assert_close(products(made, shapes), products(trained, shapes), 1e-5)
  # A norm that differs has no factors, and large kernels get none if need be.
  norm = 'conv_norm_out.weight'
  tensor = before['unet'][norm]
  other = safetensors_file.from_array(tensor.read() + 1)
  after['unet'] |= {norm: other}
  made = combining.extract(after, before, kernels, Ranks(3, 0))
  kernels_of = [shapes[key][2:] for key in trained.changes()]
  convs = kernels_of.count((3, 3))
  assert len(made.factors) == len(trained.factors) - convs
  assert made.notes[0].startswith(f'{1 + convs} tensors that differ are left')
  with pytest.raises(ValueError, match='no kernel of the two models differs'):
    combining.extract(before, before, kernels, Ranks(3))


def test_metadata_of_a_resized_file(base, shapes):
  made = adapters.made(base, 'lora', layers=adapters.UNET)
  metadata = {'ss_network_dim': '3', 'ss_seed': '1', 'sshs_model_hash': 'a'}
  made = merge.Lora(made.factors, metadata=metadata)
  fewer = combining.resize(made, shapes, Ranks(2, 1))
  assert fewer.metadata == {
    'ss_seed': '1',
    'ss_training_comment': 'dimension is resized from 3 to 2 (conv: 1); ',
  }
  dynamic = combining.resize(made, shapes, Ranks(3, None, 'sv_fro', 0.9))
  comment = dynamic.metadata['ss_training_comment']
  assert comment == 'Dynamic resize with sv_fro: 0.9 from 3; '
  assert {len(f.down) for f in dynamic.factors.values()} <= {1, 2, 3}
  assert isinstance(dynamic.changes().popitem()[1], deltas.Factors)
