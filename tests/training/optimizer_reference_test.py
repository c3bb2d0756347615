"""Ten steps of each optimizer, beside those of PyTorch packages.

The numbers were written by tests/support/torch_optimizers.py with torch 2.13.0,
transformers 5.23.0, prodigyopt 1.1.2, schedulefree 1.4.1, came-pytorch 0.1.3,
lion-pytorch 0.2.5 and dadaptation 3.2.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.training import muon, optimizer, schedule_free
from tests.support import torch_optimizers

PLACES = [0, 77, 5000, 16639]  # in the kernel
# {name: (at PLACES, the bias's first two)}
RECORDED = {
  'adafactor': (
    (-0.003947573, -0.07754189, 0.02983929, 0.1512461),
    (-0.1320288, 0.1586279),
  ),
  'adafactor, scaled': (
    (0.01091853, 0.07638557, -0.01321277, 0.1122171),
    (-0.05103705, 0.07422621),
  ),
  'adamw': (
    (-0.04281111, -0.004963661, 0.02334094, 0.1644004),
    (-0.1366444, 0.1619367),
  ),
  'came': (
    (-0.4134317, -3.434169, 0.7520572, 0.8771256),
    (-0.07892684, 0.1026878),
  ),
  'dadapt_adam': (
    (-0.06698706, -0.08644418, 0.09469922, 0.264005),
    (-0.1835169, 0.2177942),
  ),
  'lion': (
    (-0.04724292, -0.006977039, 0.04201207, 0.1865154),
    (-0.1424153, 0.1652425),
  ),
  'muon': ((0.01142097, 0.07399408, -0.0174556, 0.1070784), None),
  'prodigy': (
    (-0.02580905, 0.001412768, 0.05490115, 0.1921807),
    (-0.1366322, 0.1622205),
  ),
  'schedule_free_adamw': (
    (-0.01871526, 0.02783133, 0.0111006, 0.1460895),
    (-0.09524237, 0.1189966),
  ),
}
PACKAGES = {
  'came': 'came_pytorch',
  'dadapt_adam': 'dadaptation',
  'lion': 'lion_pytorch',
  'prodigy': 'prodigyopt',
  'schedule_free_adamw': 'schedulefree',
}
# Relative to the largest movement; torch's Muon multiplies in bfloat16.
LIMIT, MUON_LIMIT = 5e-5, 0.01


@functools.cache
def ours(name):
  """Returns what torch_optimizers.run does."""
  changes = dict(torch_optimizers.SETTINGS[name])
  rate = changes.pop('learning_rate')
  settings = optimizer.Settings(
    **{'b2': torch_optimizers.B2} | changes,
    b1=torch_optimizers.B1,
    eps=torch_optimizers.EPS,
    weight_decay=torch_optimizers.WEIGHT_DECAY,
    clip_norm=0.0,
  )
  chain = optimizer.make(name.split(',')[0], lambda _: rate, settings)
  params = jax.tree.map(jnp.asarray, torch_optimizers.make_params())
  state, update = chain.init(params), jax.jit(chain.update)
  for step in range(torch_optimizers.STEPS):
    gradients = torch_optimizers.make_gradients(step)
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
  average = schedule_free.average_of(state, params, torch_optimizers.B1)
  return params | {'kernel, average': average['kernel']}


def check(name, found, expected, start):
  moved = np.abs(np.subtract(expected, start)).max()
  limit = MUON_LIMIT if name == 'muon' else LIMIT
  assert moved > 5e-3
  np.testing.assert_allclose(found, expected, rtol=0, atol=limit * moved)


@pytest.mark.parametrize('name', torch_optimizers.SETTINGS)
def test_recorded_numbers(name):
  start, found = torch_optimizers.make_params(), ours(name)
  kernel, bias = RECORDED[name]

  def at_places(params):
    return np.ravel(params['kernel'])[PLACES]

  check(name, at_places(found), kernel, at_places(start))
  if bias:
    check(name, found['bias'][:2], bias, start['bias'][:2])


@pytest.mark.torch
@pytest.mark.parametrize('name', torch_optimizers.SETTINGS)
def test_packages(name):
  pytest.importorskip('torch')
  pytest.importorskip(PACKAGES.get(name, 'transformers'))
  start, found = torch_optimizers.make_params(), ours(name)
  expected = torch_optimizers.run(name)
  if name == 'muon':  # of matrices only
    del expected['bias']
  for part, numbers in expected.items():
    check(name, found[part], numbers, start[part.split(',')[0]])
  with_average = 'kernel, average' in expected
  assert with_average == (name == 'schedule_free_adamw')


def orthogonalized(x):
  """Newton-Schulz of the published coefficients, in float64."""
  x = x / np.linalg.norm(x)
  for _ in range(5):
    square = x @ x.T
    x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
  return 0.2 * max(x.shape) ** 0.5 * x


@pytest.mark.parametrize('shape', [(8, 12), (12, 8), (3, 6, 9), (3, 3, 4, 20)])
def test_muon_of_stacks_and_convolutions(shape):
  """A stack has a matrix for each block, a convolution one for all places."""
  x = np.random.default_rng(0).normal(0, 1, shape)
  if len(shape) == 3:
    expected = np.stack([orthogonalized(m) for m in x])
  else:
    expected = orthogonalized(x.reshape(-1, shape[-1])).reshape(shape)
  found = muon.orthogonalize(jnp.float32(x))
  np.testing.assert_allclose(found, expected, atol=2e-5)
  assert 0.1 < np.sqrt(np.square(found).mean()) < 0.3


def test_muon_leaves_ends_and_vectors_to_adamw():
  kernel = jnp.ones((4, 4))
  params = {
    'unet': {
      'conv_in': {'kernel': kernel},
      'mid': {'kernel': kernel, 'bias': kernel[0]},
    },
    'text_encoder': {'token_embedding': {'embedding': kernel}},
    'lora': {'unet': {'mid': {'a': kernel, 'b': kernel}}},
  }
  assert muon.labels(params) == {
    'unet': {
      'conv_in': {'kernel': 'adam'},
      'mid': {'kernel': 'muon', 'bias': 'adam'},
    },
    'text_encoder': {'token_embedding': {'embedding': 'adam'}},
    'lora': {'unet': {'mid': {'a': 'muon', 'b': 'muon'}}},
  }


@pytest.mark.parametrize('name', optimizer.ESTIMATING)
@pytest.mark.parametrize('rate, scale', [(0.0, 1.0), (1.0, 0.0)])
def test_estimates_survive_updates_without_a_step(name, rate, scale):
  """The first step of a warm-up has rate 0; a net may have no gradient yet."""
  rates = jnp.array([rate, 1.0])
  chain = optimizer.make(name, lambda i: rates[i], optimizer.Settings())
  params = {'kernel': jnp.ones((4, 4))}
  state = chain.init(params)
  for factor in scale, 1.0:
    gradients = {'kernel': jnp.full((4, 4), factor)}
    updates, state = jax.jit(chain.update)(gradients, state, params)
    assert np.isfinite(updates['kernel']).all()
  assert (np.asarray(updates['kernel']) < 0).all()


def test_every_optimizer_has_a_reference():
  names = {name.split(',')[0] for name in RECORDED}
  assert names == set(optimizer.NAMES) and set(PACKAGES) < names
  assert set(RECORDED) == set(torch_optimizers.SETTINGS)
