"""Only arrays come out of a pickle, and nothing that it names is run."""

import argparse
import collections
import os
import pathlib
import pickle
import shutil
from concurrent import futures

import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.weights import tensor_files, torch_pickle
from tests.support import conversions, golden_sets

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


@pytest.mark.parametrize('older', [False, True])
def test_odd_tensors_of_torch(older, tmp_path):
  """Views that are not dense, and types that only companions have."""
  torch = pytest.importorskip('torch')
  path = tmp_path / 'state.pth'
  matrix = torch.tensor(STATE['conv.weight'])
  state = {
    'transposed': matrix.mT,
    'expanded': torch.tensor([[1.0, 2.0]]).expand(3, 2),
    'column': matrix[:, 1],
    'none': torch.ones(0, 3).mT,
    'mask': torch.tensor([True, False]),
    'short': torch.tensor([1, -2], dtype=torch.int16),
    'bytes': torch.tensor([1, 255], dtype=torch.uint8),
  }
  if not older:
    state['float8'] = torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn)
  torch.save(state, path, _use_new_zipfile_serialization=not older)
  loaded = tensor_files.open_file(path).tensors
  for name, tensor in state.items():
    array = loaded[name].read().astype(float)
    assert np.array_equal(array, tensor.double().numpy()), name


def test_objects_of_training_programs_are_passed_over(tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'a.ckpt'
  content = {
    'state_dict': {'a': torch.ones(2)},
    'arguments': argparse.Namespace(rate=0.1),
    'folder': pathlib.PurePosixPath('/x'),
    'best': np.float64(0.5),
    'dtype': torch.float16,
    'size': torch.Size([1]),
  }
  torch.save(content, path)
  assert list(tensor_files.open_file(path).tensors) == ['a']


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


@pytest.mark.parametrize('older', [False, True])
def test_weights_are_opened(older, tmp_path):
  """Of a checkpoint of training too; one by one, and NaN is refused."""
  torch = pytest.importorskip('torch')
  state = {n: torch.tensor(x) for n, x in STATE.items()}
  state['parameter'] = torch.nn.Parameter(torch.ones(3))
  state['broken'] = torch.tensor([1.0, float('nan')])
  content = {'epoch': 3, 'state_dict': state, 'optimizer': {'lr': 0.1}}
  path = tmp_path / 'a.ckpt'
  if older:
    del state['broken']  # all of such a file is read at once
    content = state
  torch.save(content, path, _use_new_zipfile_serialization=not older)
  file = tensor_files.open_file(path)
  assert set(file.tensors) == set(state)
  for name, array in STATE.items():
    tensor = file.tensors[name]
    assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
    assert np.array_equal(tensor.read(), array)
  assert np.array_equal(file.tensors['parameter'].read(), np.ones(3))
  if not older:
    with pytest.raises(ValueError, match='a.ckpt: broken contains NaN'):
      file.tensors['broken'].read()


def test_weights_of_a_pickle_that_has_none(tmp_path):
  path = tmp_path / 'a.bin'
  for content, message in (
    ({'a': 1}, 'without a state dict'),
    ([1, 2], 'without a state dict'),
    ({'state_dict': {'a': Evil()}}, 'it calls .*system'),
    ({'a\nb': np.ones(3)}, 'a name that is no text'),
    ({'a': np.array([np.inf])}, 'a contains NaN or infinity'),
  ):
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=message) as info:
      tensor_files.open_file(path)
    assert '\n' not in str(info.value)


def test_an_archive_is_opened_once(tmp_path, monkeypatch):
  """Its directory has an entry for each tensor."""
  torch = pytest.importorskip('torch')
  path = tmp_path / 'a.ckpt'
  torch.save({str(i): torch.tensor([i]) for i in range(9)}, path)
  tensors = tensor_files.open_file(path).tensors
  monkeypatch.setattr(torch_pickle.zipfile, 'ZipFile', None)
  assert [int(tensor.read()[0]) for tensor in tensors.values()] == [*range(9)]


@pytest.mark.parametrize('error', [PermissionError, MemoryError])
def test_errors_of_the_system_say_nothing_of_the_file(
  error, tmp_path, monkeypatch
):
  path = tmp_path / 'a.pth'
  path.write_bytes(pickle.dumps(STATE))

  def fail(*args):
    raise error('of the system')

  monkeypatch.setattr(torch_pickle.Unpickler, 'load', fail)
  with pytest.raises(error, match='of the system'):
    torch_pickle.load(path)
  with pytest.raises(error, match='of the system'):
    tensor_files.open_file(path)


@pytest.mark.torch
def test_tensors_are_read_by_several_threads(tmp_path):
  """As a net is loaded; the archive is one file, with one position."""
  torch = pytest.importorskip('torch')
  path, names = tmp_path / 'a.bin', [f'x{i}' for i in range(300)]
  torch.save({n: torch.full((17,), i) for i, n in enumerate(names)}, path)
  tensors = torch_pickle.open_tensors(path)
  with futures.ThreadPoolExecutor(8) as pool:
    arrays = list(pool.map(lambda name: tensors[name].read(), names))
  assert [set(x.tolist()) for x in arrays] == [{i} for i in range(300)]


@pytest.mark.slow
@pytest.mark.torch
def test_a_model_in_pickles(tmp_path):
  """A folder with .bin files, and the same nets in one .ckpt."""
  torch = pytest.importorskip('torch')
  source = golden_sets.SETS[0] / 'tiny' / 'refiner'
  folder, single = tmp_path / 'folder', tmp_path / 'a.safetensors'
  shutil.copytree(source, folder)
  conversions.run(source, single, 'single_file')
  for path in [single, *folder.rglob('*.safetensors')]:
    arrays = safetensors.numpy.load_file(path)
    name = path.with_suffix('.ckpt' if path == single else '.bin').name
    name = 'pytorch_model.bin' if name == 'model.bin' else name
    state = {n: torch.tensor(x) for n, x in arrays.items()}
    torch.save(state, path.with_name(name))
  # A .ckpt has no metadata, so that a model completes the configs.
  config = conversions.tensors(folder)
  for path in folder.rglob('*.safetensors'):
    path.unlink()
  for i, read in enumerate((folder, tmp_path / 'a.ckpt')):
    target = tmp_path / f'{i}'
    conversions.run(read, target, 'diffusers', base=source)
    conversions.check_same(conversions.tensors(target), config)
