"""Fixtures shared by the tests of UNet and autoencoder."""

import functools
import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.weights.diffusers import tensor_names


@pytest.fixture(scope='session')
def jit():
  """jax.jit that compiles in half the time: these programs run once."""
  options = {'xla_backend_optimization_level': 0}
  return functools.partial(jax.jit, compiler_options=options)


@pytest.fixture(scope='session')
def load_probe(golden):
  """load_probe(name, params): arrays of a probe, and params scaled for it."""
  fixtures = golden / 'tiny' / 'fixtures'
  probes = json.loads((fixtures / 'probes.json').read_text())['probes']

  def load(name, params):
    params = jax.tree.map(np.copy, params)
    flat = traverse_util.flatten_dict(params)
    slots = tensor_names.locations(flat)
    for scaled in probes[name]['params_scaled']:
      tensor_names.tensor(flat, slots[scaled])[...] *= probes[name]['scale']
    return np.load(fixtures / f'{name}.npz'), params

  return load


@pytest.fixture(scope='session')
def check_grads(close, tolerances):
  """check(grads, stats, arrays): l2, sum and max of all; elements of arrays."""
  named = tolerances['unet_grad_inputs_and_named_weights']
  limit = tolerances['unet_grad_stats_l2_rel']

  def check(grads, stats, arrays):
    flat = traverse_util.flatten_dict(grads)
    slots = tensor_names.locations(flat)
    assert slots.keys() == stats.keys()
    # A bias of keys has no gradient, since softmax cancels it: float32 noise.
    noise = 1e-7 * max(l2 for l2, _, _ in stats.values())
    for name, (l2, total, largest) in stats.items():
      grad = tensor_names.tensor(flat, slots[name]).astype(np.float64)
      assert abs(np.linalg.norm(grad) - l2) <= limit * l2 + noise, name
      assert abs(np.abs(grad).max() - largest) <= limit * largest + noise, name
      # A sum may cancel: |sum| <= sqrt(n) l2.
      bound = (limit * l2 + noise) * grad.size**0.5
      assert abs(grad.sum() - total) <= bound, name
    for key in arrays:
      if key.startswith('grad/'):
        grad = tensor_names.tensor(flat, slots[key.removeprefix('grad/')])
        close(grad, arrays[key], named, key)

  return check
