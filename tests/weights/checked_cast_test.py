"""Parameters are finite, casts are numpy's, and overflows are errors."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sdxl_jax.weights import checked_cast, orbax_params

LARGE = {'conv': {'kernel': np.array([[1, -7e4]], np.float32)}}
OVERFLOW = (
  'place: conv/kernel has 7e.04, which overflows float16: choose bfloat'
)
HALVES = np.arange(2**16, dtype=np.uint16)


def test_which_casts_may_overflow():
  types = np.float32, ml_dtypes.bfloat16, np.float16
  found = [(a, b) for a in types for b in types if checked_cast.narrows(a, b)]
  # The largest bfloat16 is under the largest float32.
  expected = [(0, 1), (0, 2), (1, 2)]
  assert found == [(types[a], types[b]) for a, b in expected]


def test_parameters_that_overflow():
  checked_cast.cast_params(LARGE, 'bfloat16', 'place')
  with pytest.raises(ValueError, match=OVERFLOW):
    checked_cast.cast_params(LARGE, 'float16', 'place')
  arrays = jax.tree.map(jnp.asarray, LARGE)
  with pytest.raises(ValueError, match=OVERFLOW):
    checked_cast.cast_params(arrays, 'float16', 'place')


@pytest.mark.parametrize('place', [orbax_params.on_host, lambda tree: tree])
def test_an_orbax_export_that_overflows(tmp_path, place):
  folder = tmp_path / 'place'
  orbax_params.save(folder, jax.tree.map(jnp.asarray, LARGE))

  def target(dtype):
    return place({'conv': {'kernel': jax.ShapeDtypeStruct((1, 2), dtype)}})

  half = orbax_params.restore(folder, target(jnp.bfloat16))
  assert half['conv']['kernel'].dtype == jnp.bfloat16
  with pytest.raises(ValueError, match=OVERFLOW):
    orbax_params.restore(folder, target(jnp.float16))


def test_trees_of_parameters():
  """Of arrays that devices share, too."""
  mesh = jax.make_mesh((jax.device_count(),), ('x',))
  sharding = jax.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  array = np.ones((jax.device_count(), 3), np.float32)
  fine = {'a': {'b': jax.device_put(array, sharding), 'c': array}}
  checked_cast.check_tree(fine, 'here')
  array[-1, 2] = np.inf
  for placed in (array, jax.device_put(array, sharding)):
    with pytest.raises(ValueError, match='^here: a/b contains NaN or infinity'):
      checked_cast.check_tree({'a': {'b': placed}}, 'here')


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('finite', [True, False])
def test_all_numbers_of_float16(monkeypatch, dtype, finite):
  """Subnormal numbers and both zeros too, in blocks that do not divide them."""
  monkeypatch.setattr(checked_cast, 'EXTENDED', 10_000)
  array = HALVES.view(np.float16)
  array = array[np.isfinite(array)] if finite else array
  array = array.reshape(2, -1)
  cast = checked_cast.cast(array, dtype)
  with np.errstate(invalid='ignore'):
    expected = array.astype(dtype)
  assert cast.dtype == expected.dtype and cast.shape == expected.shape
  bits = {2: np.uint16, 4: np.uint32}[expected.itemsize]
  np.testing.assert_array_equal(cast.view(bits), expected.view(bits))


def test_strided_arrays():
  array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float16)
  cast = checked_cast.cast(array.T, np.float32)
  np.testing.assert_array_equal(cast, array.T.astype(np.float32))


def test_an_overflow_becomes_infinity():
  cast = checked_cast.cast(np.float32([1e6, -1e6, 1]), np.float16)
  np.testing.assert_array_equal(cast, np.float16([np.inf, -np.inf, 1]))
