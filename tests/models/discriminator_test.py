"""The discriminator against the same in PyTorch, on one and many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.distributed import mesh, sharding
from sdxl_jax.models import discriminator
from sdxl_jax.weights import names

CONFIG = discriminator.DiscriminatorConfig(features=8)


@pytest.fixture(scope='module')
def net():
  net = discriminator.Discriminator(CONFIG)
  return net, net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def image(seed=0, batch=4):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (batch, 48, 32, 3)).astype(np.float32)


def in_torch(torch, params):
  """The reference's NLayerDiscriminator, written with torch's layers."""
  nn, f = torch.nn, CONFIG.features
  conv = lambda i, o, stride, bias: nn.Conv2d(i, o, 4, stride, 1, bias=bias)
  main = [conv(3, f, 2, True), nn.LeakyReLU(0.2)]
  for i, o, stride in ((f, 2 * f, 2), (2 * f, 4 * f, 2), (4 * f, 8 * f, 1)):
    main += [conv(i, o, stride, False), nn.BatchNorm2d(o), nn.LeakyReLU(0.2)]
  main = nn.Sequential(*main, conv(8 * f, 1, 1, True))
  flat = traverse_util.flatten_dict(params)
  state = {
    name.removeprefix('main.'): torch.tensor(names.tensor(flat, slot))
    for name, slot in names.slots(flat).items()
  }
  lacking, extra = main.load_state_dict(state, strict=False)
  assert not extra and all('running' in n or 'num_' in n for n in lacking)
  return main.train()


def test_as_in_torch(net):
  torch = pytest.importorskip('torch')
  net, variables = net
  x = image()
  logits, pull = jax.vjp(lambda v, x: net.apply(v, x), variables, x)
  assert logits.shape == (4, 4, 2, 1)
  theirs = in_torch(torch, variables['params'])
  x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
  expected = theirs(x)
  np.testing.assert_allclose(
    logits.transpose(0, 3, 1, 2), expected.detach(), atol=2e-5
  )
  expected.square().sum().backward()
  gradients, by_x = pull(2 * logits)
  ours = names.slots(flat := traverse_util.flatten_dict(gradients['params']))
  for name, parameter in theirs.named_parameters():
    np.testing.assert_allclose(
      names.tensor(flat, ours[f'main.{name}']),
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
  four = mesh.make_mesh(devices=jax.devices()[:4])
  rows = sharding.batch_sharding(four)
  apply = jax.jit(net.apply, out_shardings=rows)
  shared = apply(variables, jax.device_put(x, rows))
  assert len(shared.sharding.device_set) == 4
  np.testing.assert_allclose(shared, whole, atol=1e-5)
  alone = jnp.concatenate([net.apply(variables, row[None]) for row in x])
  assert np.abs(alone - whole).max() > 0.01
