"""Only arrays come out of a pickle, and nothing that it names is run."""

import collections
import os
import pickle

import numpy as np
import pytest

from sdxl_jax.weights import torch_pickle

RNG = np.random.default_rng(0)
STATE = {
  'conv.weight': RNG.normal(size=(4, 3, 2, 2)).astype(np.float32),
  'conv.bias': RNG.normal(size=4).astype(np.float16),
  'count': np.array(7),
}


def test_trees_of_numpy(tmp_path):
  path = tmp_path / 'tree.ckpt'
  path.write_bytes(pickle.dumps({'params': STATE}))
  loaded = torch_pickle.load(path)['params']
  assert all(np.array_equal(loaded[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize('older', [False, True])
def test_state_dicts_of_torch(older, tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'state.pth'
  matrix = torch.tensor(STATE['conv.weight'])
  state = collections.OrderedDict(
    {n: torch.tensor(x) for n, x in STATE.items()}
  )
  state['part'] = matrix[1:3]  # a view, which shares memory
  state['half'] = torch.tensor([1.5, 2.0], dtype=torch.bfloat16)
  torch.save(state, path, _use_new_zipfile_serialization=not older)
  loaded = torch_pickle.load(path)
  assert list(loaded) == list(state)
  for name, tensor in state.items():
    assert np.array_equal(loaded[name].astype(float), tensor.double().numpy())
  torch.save({'transposed': matrix.mT}, path)
  with pytest.raises(ValueError, match='strides'):
    torch_pickle.load(path)


class Evil:
  def __reduce__(self):
    return os.system, ('touch evil',)


@pytest.mark.parametrize(
  'content', [pickle.dumps({'a': Evil()}), b'', b'\x80\x02]q\x00(K', b'PK\3\4']
)
def test_nothing_else_is_loaded(content, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'evil.pth'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='evil.pth is not a pickle of arrays'):
    torch_pickle.load(path)
  assert not (tmp_path / 'evil').exists()
  with pytest.raises(FileNotFoundError):
    torch_pickle.load(tmp_path / 'missing.pth')
