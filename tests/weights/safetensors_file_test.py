"""Our reading and writing of safetensors agrees with the library's."""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from sdxl_jax.weights import checked_cast, safetensors_file

RNG = np.random.default_rng(0)
ARRAYS = {
  'a.weight': RNG.normal(size=(3, 5)).astype(np.float32),
  'b.half': RNG.normal(size=(7,)).astype(np.float16),
  'c.count': np.arange(6).reshape(2, 3),
  'd.empty': np.zeros((0, 4), np.float32),
  'e.scalar': np.array(2.5, np.float32),
}


def write(path, arrays, **settings):
  tensors = {
    name: safetensors_file.from_array(array) for name, array in arrays.items()
  }
  safetensors_file.write(path, tensors, **settings)


def check_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype
    assert actual[name].shape == array.shape
    np.testing.assert_array_equal(actual[name], array)


def test_the_library_reads_what_we_write(tmp_path):
  watched = []
  metadata = {'x': 'ü"'}
  write(tmp_path / 'a', ARRAYS, metadata=metadata, watch=watched.append)
  check_same(safetensors.numpy.load_file(tmp_path / 'a'), ARRAYS)
  with safetensors.safe_open(tmp_path / 'a', 'numpy') as file:
    assert file.metadata() == {'format': 'pt', 'x': 'ü"'}
  assert sum(watched) == sum(array.nbytes for array in ARRAYS.values())


def test_we_read_what_the_library_writes(tmp_path):
  safetensors.numpy.save_file(ARRAYS, tmp_path / 'a', {'x': 'y'})
  file = safetensors_file.load(tmp_path / 'a')
  check_same({n: t.read() for n, t in file.tensors.items()}, ARRAYS)
  assert file.metadata == {'x': 'y'}


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32'])
def test_cast(tmp_path, dtype, monkeypatch):
  """In blocks that do not divide the tensors; whole numbers stay."""
  monkeypatch.setattr(checked_cast, 'BLOCK', 10)
  write(tmp_path / 'a', ARRAYS, dtype=dtype)
  expected = {
    name: array if name == 'c.count' else array.astype(dtype)
    for name, array in ARRAYS.items()
  }
  tensors = safetensors_file.load(tmp_path / 'a').tensors
  check_same({n: t.read() for n, t in tensors.items()}, expected)


def test_strided_arrays(tmp_path):
  array = RNG.normal(size=(3, 4, 5)).transpose(2, 0, 1)
  write(tmp_path / 'a', {'x': array})
  check_same(safetensors.numpy.load_file(tmp_path / 'a'), {'x': array})


@pytest.mark.parametrize('number', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_numbers_that_are_not_finite_are_refused(tmp_path, number, dtype):
  array = np.ones((2, 3), dtype)
  array[1, 2] = number
  with pytest.raises(ValueError, match='^x contains NaN or infinity'):
    write(tmp_path / 'a', {'x': array})


def test_overflow_is_refused(tmp_path):
  array = np.array([1.0, -7e4], np.float32)
  with pytest.raises(
    ValueError, match='x has 7e.04, which overflows float16: choose b'
  ):
    write(tmp_path / 'a', {'x': array}, dtype='float16')
  write(tmp_path / 'b', {'x': array}, dtype='bfloat16')


def test_a_file_that_is_truncated_later(tmp_path):
  write(tmp_path / 'a', {'x': np.zeros(1000)})
  tensor = safetensors_file.load(tmp_path / 'a').tensors['x']
  with (tmp_path / 'a').open('r+b') as file:
    file.truncate(500)
  with pytest.raises(ValueError, match='a was truncated after it was opened'):
    tensor.read()


@pytest.mark.parametrize('suffix', ['ckpt', 'bin', 'safetensors'])
def test_pickles_are_detected_by_their_content(tmp_path, suffix):
  path = tmp_path / f'model.{suffix}'
  for head in (b'PK\x03\x04', b'\x80\x02'):
    path.write_bytes(head + bytes(100))
    with pytest.raises(ValueError, match='is a pickle.*weights_only=True'):
      safetensors_file.load(path)
