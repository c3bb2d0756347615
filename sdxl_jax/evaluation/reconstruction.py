"""How near an autoencoder comes: PSNR, SSIM, LPIPS; pictures side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.models import latent_scaling

WINDOW, SIGMA = 11, 1.5  # px, of SSIM's Gaussian (Wang et al. 2004, section 3)
K1, K2 = 0.01, 0.03
NAMES = ('psnr', 'ssim', 'lpips')
GAIN = 4  # of the difference that is shown


def psnr(x, y):
  """Peak signal to noise ratio in dB of images [b, h, w, c] in [-1, 1]; [b]."""
  mse = jnp.square((x - y) / 2).mean((1, 2, 3))
  return -10 * jnp.log10(mse)


def ssim(x, y):
  """Structural similarity of images [b, h, w, c] in [-1, 1]; [b], 1: alike.

  Wang et al. 2004, equation 13, each channel by itself, where the window lies
  within the image.
  """
  x, y = (x + 1) / 2, (y + 1) / 2
  mean_x, mean_y = blur(x), blur(y)
  var_x = blur(x * x) - mean_x**2
  var_y = blur(y * y) - mean_y**2
  covariance = blur(x * y) - mean_x * mean_y
  light = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
  form = (2 * covariance + K2**2) / (var_x + var_y + K2**2)
  return (light * form).mean((1, 2, 3))


def blur(x):
  """Weighted mean under SSIM's window, at each place where it fits."""
  offsets = np.arange(WINDOW) - WINDOW // 2
  g = np.exp(-0.5 * (offsets / SIGMA) ** 2)
  g = jnp.asarray(g / g.sum(), jnp.float32)
  for axis in (1, 2):
    span = x.shape[axis] - WINDOW + 1
    slices = [
      jax.lax.slice_in_dim(x, i, i + span, axis=axis) for i in range(WINDOW)
    ]
    x = sum(weight * part for weight, part in zip(g, slices))
  return x


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(nets, params, image):
  """The image through the posterior's mean, and its moments.

  Args:
    nets: autoencoder_task.Nets.
    params: {'vae': parameters}.
    image: [b, h, w, 3] in [-1, 1].
  """
  moments = nets.encode(params, image)
  mean, _ = latent_scaling.split(moments)
  made = nets.decode(params, latent_scaling.scale(nets.vae, mean))
  return made.clip(-1, 1), moments


def measure(nets, params, image):
  """All that is measured of a batch.

  Args:
    nets: autoencoder_task.Nets.
    params: {'vae': parameters, 'lpips': parameters}, the latter optional.
    image: [b, h, w, 3] in [-1, 1].

  Returns:
    {name: [b, ...]}, and the reconstruction through the posterior's mean.
  """
  made, moments = reconstruct(nets, params, image)
  values = {'psnr': psnr(image, made), 'ssim': ssim(image, made)}
  if 'lpips' in params:
    values['lpips'] = nets.distance(params, image, made)
  values['mean'], values['square'] = latent_scaling.statistics(moments)
  return values, made


def summary(found):
  """What `measure` found of all pictures, as JSON.

  Args:
    found: {name: [array of each picture]}.
  """
  found = {name: np.array(values, np.float64) for name, values in found.items()}
  metrics = {
    name: [float(found[name].mean()), float(found[name].std())]
    for name in NAMES
    if name in found
  }
  factor, mean = latent_scaling.standard(
    found['mean'].mean(0), found['square'].mean(0)
  )
  return metrics | {'scaling_factor': factor, 'latents_mean': list(mean)}


def comparison(images, reconstructions):
  """[input, reconstruction, 4 x difference] of each, for images.grid.

  Args:
    images, reconstructions: sequences of float [h, w, 3] in [-1, 1].
  """
  cells = []
  for x, y in zip(images, reconstructions):
    difference = np.abs(np.asarray(x) - np.asarray(y)) * GAIN - 1
    cells += [np.asarray(x), np.asarray(y), difference.clip(-1, 1)]
  return cells
