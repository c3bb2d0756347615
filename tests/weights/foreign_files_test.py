"""Files that hold no weights: each is named, in one line, with what to do."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from sdxl_jax.weights import (
  checked_cast,
  foreign_files,
  formats,
  safetensors_file,
  tensor_files,
)


def archive(name):
  data = io.BytesIO()
  with zipfile.ZipFile(data, 'w') as file:
    file.writestr(name, 'abc')
  return data.getvalue()


def safetensors_of(dtype):
  entry = {'dtype': dtype, 'shape': [4], 'data_offsets': [0, 2]}
  header = json.dumps({'x': entry}).encode()
  return struct.pack('<Q', len(header)) + header + bytes(2)


WHOLE = safetensors.numpy.save({'x': np.ones(100, np.float32)})
POINTER = (
  'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6938078334\n'
)
KINDS = {
  'pointer.safetensors': (POINTER.encode(), 'git-lfs pointer.*6,938,078,334'),
  'a.gguf': (b'GGUF' + bytes(4000), 'is GGUF, quantised.*float16 or longer'),
  'gguf.safetensors': (b'GGUF' + bytes(99), 'is GGUF'),
  'page.safetensors': (b'\n<!DOCTYPE html><html>' * 99, 'is a web page.*login'),
  'page2.safetensors': (b'<html><head>', 'is a web page'),
  'answer.safetensors': (b'{"error": "not\\nfound"}', "server.*'not found'"),
  'model_index.json': (b'{"_class_name": "x"}', 'describes a model: pass its'),
  'config.json': (b'{"sample_size": 64}', 'describes a net: pass its folder'),
  'a.index.json': (b'{"weight_map": {}}', 'index of several files: pass its'),
  'other.json': (b'[1, 2, 3, 4]', 'is JSON: pass the weights'),
  'a.yaml': ('model:\n  übung: 1\n'.encode(), 'is a text.*model: übung'),
  'a.zip': (archive('model/a.safetensors'), 'is an archive: unpack it'),
  'cut.ckpt': (b'PK\3\4' + bytes(100), 'is a pickle in a truncated or corrupt'),
  'a.7z': (b'7z\xbc\xaf\x27\x1c' + bytes(99), 'is an archive: unpack it'),
  'a.onnx': (b'\x08\x07\x12\x07pytorch', 'is an ONNX graph'),
  'onnx.safetensors': (b'\x08\x07\x12\x07pytorch', 'is a graph of ONNX'),
  'a.engine': (bytes(range(99)), 'is a TensorRT engine'),
  'engine.safetensors': (b'ftrt' + bytes(99), 'is a TensorRT engine'),
  'a.msgpack': (b'\x81\xa1a\x01' * 9, 'is msgpack'),
  'a.npy': (b'\x93NUMPY' + bytes(99), 'a single numpy array'),
  'a.h5': (b'\x89HDF\r\n\x1a\n' + bytes(99), 'is HDF5'),
  'a.png': (b'\x89PNG\r\n\x1a\n' + bytes(99), 'is an image'),
  'zeros.safetensors': (bytes(9999), 'begins with zeros'),
  'a.safetensors.part': (WHOLE[:300], 'download that was not finished'),
  'empty.safetensors': (b'', 'truncated or corrupt.*file has 0 bytes'),
  'tiny.bin': (b'PK', 'has 2 bytes: download it again'),
  'cut.safetensors': (WHOLE[:-9], 'describes 400 bytes.*the file has 391'),
  'head.safetensors': (WHOLE[:20], 'truncated or corrupt.*in a file of 20'),
  'f4.safetensors': (safetensors_of('F4'), 'x is stored as F4: quantised'),
  'f9.safetensors': (safetensors_of('F9'), "unknown dtype 'F9'"),
  'noise.safetensors': (bytes(range(256)) * 9, 'truncated or corrupt'),
}


@pytest.mark.parametrize('name', KINDS)
def test_what_it_is(tmp_path, name):
  data, message = KINDS[name]
  (tmp_path / name).write_bytes(data)
  with pytest.raises(ValueError, match=message) as info:
    formats.open_model(tmp_path / name)
  text = str(info.value)
  assert text.startswith(str(tmp_path / name)) and text.isprintable()


@pytest.mark.parametrize('length', [640, 896, 1152, 1408])
def test_lengths_of_headers_that_begin_as_pickles(length, tmp_path):
  header = {'x': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}
  text = json.dumps(header).encode().ljust(length)
  path = tmp_path / 'a.safetensors'
  path.write_bytes(struct.pack('<Q', length) + text + bytes(4))
  assert path.read_bytes().startswith(foreign_files.PICKLE_MAGIC)
  file = tensor_files.open_file(path)
  assert np.array_equal(file.tensors['x'].read(), [0])
  # Corrupt, it is no pickle either.
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='the file has 3'):
    tensor_files.open_file(path)


@pytest.mark.parametrize('number', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  'dtype', ['float64', 'float32', 'float16', 'bfloat16', 'float8_e5m2']
)
def test_numbers_that_cannot_be_right(tmp_path, number, dtype, monkeypatch):
  """Are found when a tensor is read, in any block of it."""
  monkeypatch.setattr(checked_cast, 'CHECKED', 7)
  dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
  array = np.full((4, 5), 3, dtype)
  fine, wrong = array.copy(), array.copy()
  fine[0, 0] = 0
  wrong[3, 4] = number
  tensors = {'fine': fine, 'wrong.weight': wrong}
  path = tmp_path / 'a.safetensors'
  entries, data = {}, b''
  for name, tensor in tensors.items():
    end = len(data) + tensor.nbytes
    code = safetensors_file.CODES[dtype]
    offsets = [len(data), end]
    entries[name] = {'dtype': code, 'shape': [4, 5], 'data_offsets': offsets}
    data += tensor.tobytes()
  header = json.dumps(entries).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header + data)
  file = tensor_files.open_file(path)
  assert np.array_equal(file.tensors['fine'].read(), fine)
  message = 'a.safetensors: wrong.weight contains NaN or infinity.*re-download'
  with pytest.raises(checked_cast.NotFiniteError, match=message):
    file.tensors['wrong.weight'].read()


def test_the_largest_numbers_are_finite():
  for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
    largest = ml_dtypes.finfo(dtype).max
    array = np.array([largest, -largest, 0], dtype)
    assert checked_cast.is_finite(array)
    assert not checked_cast.is_finite(np.append(array, dtype(np.inf)))
  assert checked_cast.is_finite(np.zeros((0, 3), np.float16))
  assert checked_cast.is_finite(np.array(2.5, np.float16))
  assert checked_cast.is_finite(np.arange(3))
