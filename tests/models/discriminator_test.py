"""The discriminator against the same in PyTorch, on one and many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import discriminator
from sdxl_jax.weights.diffusers import tensor_names

CONFIG = discriminator.DiscriminatorConfig(features=8)


@pytest.fixture(scope='module')
def net():
  net = discriminator.Discriminator(CONFIG)
  return net, net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def image(seed=0, batch=4):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (batch, 48, 32, 3)).astype(np.float32)


def test_as_in_torch(net):
  pytest.importorskip('torch')
  from tests.support import discriminator_in_torch as in_torch

  net, variables = net
  logits, pull = jax.vjp(lambda v, x: net.apply(v, x), variables, image())
  assert logits.shape == (4, 4, 2, 1)
  theirs = in_torch.discriminator(variables['params'], CONFIG.features)
  x = in_torch.image(image()).requires_grad_()
  expected = theirs(x)
  np.testing.assert_allclose(
    logits.transpose(0, 3, 1, 2), expected.detach(), atol=2e-5
  )
  expected.square().sum().backward()
  gradients, by_x = pull(2 * logits)
  ours = tensor_names.locations(
    flat := traverse_util.flatten_dict(gradients['params'])
  )
  for name, parameter in theirs.named_parameters():
    np.testing.assert_allclose(
      tensor_names.tensor(flat, ours[f'main.{name}']),
      parameter.grad,
      atol=2e-4 * float(parameter.grad.abs().max()),
      err_msg=name,
    )
  np.testing.assert_allclose(
    by_x.transpose(0, 3, 1, 2), x.grad, atol=2e-4 * float(x.grad.abs().max())
  )


def test_size_and_start():
  net = discriminator.Discriminator()
  params = net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  assert sum(x.size for x in jax.tree.leaves(params)) == 2_765_633
  assert abs(np.std(params['main_8']['kernel']) - 0.02) < 1e-3
  assert abs(np.mean(params['main_9']['scale']) - 1) < 1e-2


def test_statistics_are_those_of_all_devices(net):
  net, variables = net
  x = image()
  whole = net.apply(variables, x)
  four = device_mesh.make_mesh(devices=jax.devices()[:4])
  rows = sharding.batch_sharding(four)
  apply = jax.jit(net.apply, out_shardings=rows)
  shared = apply(variables, jax.device_put(x, rows))
  assert len(shared.sharding.device_set) == 4
  np.testing.assert_allclose(shared, whole, atol=1e-5)
  alone = jnp.concatenate([net.apply(variables, row[None]) for row in x])
  assert np.abs(alone - whole).max() > 0.01
