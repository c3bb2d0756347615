"""That parameters are finite."""

import jax
import numpy as np
import pytest

from sdxl_jax.weights import checked_cast


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
