"""The autoencoder against the reference, and the identity autoencoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import latent_scaling, vae
from tests.support import folders


@pytest.fixture(scope='module')
def net(golden, jit):
  """Module, parameters, and both directions as one compiled function."""
  config, params = folders.load_component(golden / 'tiny' / 'base', 'vae')
  net = vae.VAE(config)

  def both(net, image, latents):
    return (net.encode(image), net.decode(latents))

  def apply(params, *x):
    return net.apply({'params': params}, *x, method=both)

  return net, params, jit(apply)


def nchw(x):
  return np.asarray(x).transpose(0, 3, 1, 2)


def nhwc(x):
  return np.asarray(x).transpose(0, 2, 3, 1)


def test_both_directions(golden, close, tolerances, net):
  net, params, apply = net
  paths = sorted((golden / 'tiny' / 'fixtures').glob('vae_b*.npz'))
  assert paths
  limit = tolerances['vae_mean_logvar_decoded']
  for path in paths:
    arrays = np.load(path)
    image, latents = nhwc(arrays['image']), nhwc(arrays['latents'])
    moments, decoded = apply(params, image, latents)
    mean, logvar = jnp.split(moments, 2, axis=-1)
    scaled = latent_scaling.sample(net.config, moments, nhwc(arrays['noise']))
    close(nchw(mean), arrays['mean'], limit, f'{path.stem} mean')
    close(nchw(logvar), arrays['logvar'], limit, f'{path.stem} logvar')
    close(nchw(scaled), arrays['scaled_sample'], limit, f'{path.stem} sample')
    close(nchw(decoded), arrays['decoded'], limit, f'{path.stem} decoded')


def test_small_inputs_meet_the_right_epsilon(
  close, tolerances, load_probe, net
):
  _, params, apply = net
  arrays, params = load_probe('probe_vae', params)
  image, latents = nhwc(arrays['image']), nhwc(arrays['latents'])
  moments, decoded = apply(params, image, latents)
  limit = tolerances['eps_probes']
  close(nchw(moments), arrays['moments_f64'], limit, 'moments')
  close(nchw(decoded), arrays['decoded_f64'], limit, 'decoded')


def test_gradients(golden, close, tolerances, jit, check_grads, net):
  net, params, _ = net
  fixtures = golden / 'tiny' / 'fixtures'
  arrays = np.load(fixtures / 'vae_grad.npz')
  stats = json.loads((fixtures / 'vae_grad_stats.json').read_text())
  image, target = nhwc(arrays['image']), nhwc(arrays['target'])

  def loss(params, image):
    return jnp.mean((net.apply({'params': params}, image) - target) ** 2)

  value, (grads, grad_image) = jit(jax.value_and_grad(loss, (0, 1)))(
    params, image
  )
  np.testing.assert_allclose(value, stats['loss'], rtol=1e-5)
  check_grads(grads, stats['params'], arrays)
  limit = tolerances['unet_grad_inputs_and_named_weights']
  close(nchw(grad_image), arrays['grad_image'], limit, 'image')


def test_patches_there_and_back():
  net = vae.make_vae(vae.PatchConfig())
  image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3))
  image = image.astype(np.float32)
  moments = net.apply({}, image, method='encode')
  assert moments.shape == (2, 2, 3, 2 * net.config.latent_channels)
  # One latent is one patch of the image, row by row.
  patch = image[0, :4, 4:8].reshape(-1)
  np.testing.assert_array_equal(moments[0, 0, 1, : patch.size], patch)
  np.testing.assert_array_equal(net.apply({}, image), image)


def test_patches_with_more_detail():
  net = vae.make_vae(vae.PatchConfig(detail=4.0, scaling_factor=0.5))
  image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3))
  image = image.astype(np.float32)
  moments = net.apply({}, image, method='encode')
  cell = moments[0, 0, 1, : net.config.latent_channels].reshape(16, 3)
  patch = image[0, :4, 4:8].reshape(16, 3)
  np.testing.assert_allclose(cell.mean(0), patch.mean(0), atol=1e-6)
  np.testing.assert_allclose(cell.std(0), 4 * patch.std(0), rtol=1e-5)
  np.testing.assert_allclose(net.apply({}, image), image, atol=1e-6)
