"""PSNR, SSIM and LPIPS of an autoencoder, and images side by side."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dm_pix
import jax
import numpy as np
from jaxtyping import Array, Float

from sdxl_jax.models import autoencoder_gan, latent_scaling, sdxl

Images = Float[Array | np.ndarray, 'b h w c']
Image = Float[Array | np.ndarray, 'h w c']

NAMES = ('psnr', 'ssim', 'lpips')
WINDOW = 11  # px, of SSIM's Gaussian
GAIN = 4  # factor that makes differences visible


def psnr(x: Images, y: Images) -> Float[Array, ' b']:
  """Computes the peak signal to noise ratio in dB of images in [-1, 1]."""
  # dm_pix expects images in [0, 1].
  return dm_pix.psnr((x + 1) / 2, (y + 1) / 2)


def ssim(x: Images, y: Images) -> Float[Array, ' b']:
  """Computes the structural similarity of images in [-1, 1]; 1: identical.

  Wang et al. 2004, equation 13, of each channel by itself, under a Gaussian
  window of 11 px (sigma 1.5 px) wherever it lies within the image.

  Raises:
    ValueError: for images smaller than the window.
  """
  if min(x.shape[1:3]) < WINDOW:
    raise ValueError(
      f'images have {x.shape[1]} x {x.shape[2]} px; SSIM needs at least '
      f'{WINDOW} px on each side'
    )
  return dm_pix.ssim((x + 1) / 2, (y + 1) / 2)


@functools.partial(jax.jit, static_argnums=0)
def reconstruct(
  model: autoencoder_gan.AutoencoderGAN | sdxl.SDXL,
  params: dict[str, Any],
  image: Images,
) -> tuple[Images, Float[Array, 'b h_latent w_latent c_moments']]:
  """Returns images in [-1, 1] through the posterior's mean, and their moments.

  Args:
    model: with the autoencoder.
    params: {'vae': parameters}.
    image: in [-1, 1].
  """
  # The mean, not a sample: a reconstruction depends on nothing random.
  moments = model.encode(params, image)
  mean, _ = latent_scaling.split(moments)
  decoded = model.decode(params, latent_scaling.scale(model.vae, mean))
  return latent_scaling.to_pixels(decoded), moments


def measure(
  model: autoencoder_gan.AutoencoderGAN, params: dict[str, Any], image: Images
) -> tuple[dict[str, Array], Images]:
  """Measures the reconstructions of a batch.

  Args:
    model: autoencoder, with LPIPS if its parameters are there.
    params: {'vae': parameters, 'lpips': parameters}, the latter optional.
    image: in [-1, 1].

  Returns:
    {name: [b, ...]}: psnr, ssim, lpips, and mean and mean square of each
    channel of the latents; and the reconstructions.
  """
  reconstructed, moments = reconstruct(model, params, image)
  values = {
    'psnr': psnr(image, reconstructed),
    'ssim': ssim(image, reconstructed),
  }
  # LPIPS only where its weights were loaded.
  if 'lpips' in params:
    values['lpips'] = model.distance(params, image, reconstructed)
  values['mean'], values['square'] = latent_scaling.statistics(moments)
  return values, reconstructed


def summary(values: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
  """Summarises what `measure` returns, as JSON.

  Args:
    values: {name: [value of each image]}.

  Returns:
    {metric: [mean, standard deviation]}, scaling_factor and latents_mean.
  """
  # In float64, since sums over thousands of images lose digits in float32.
  arrays = {name: np.array(x, np.float64) for name, x in values.items()}
  metrics = {
    name: [float(arrays[name].mean()), float(arrays[name].std())]
    for name in NAMES
    if name in arrays
  }
  factor, mean = latent_scaling.standard(
    arrays['mean'].mean(0), arrays['square'].mean(0)
  )
  return metrics | {'scaling_factor': factor, 'latents_mean': list(mean)}


def comparison(
  images: Iterable[Image], reconstructions: Iterable[Image]
) -> list[Float[np.ndarray, 'h w c']]:
  """Returns [image, reconstruction, 4 x difference] of each, for figures.grid.

  All are in [-1, 1].
  """
  cells = []
  for x, y in zip(images, reconstructions):
    # From -1, black, where there is no difference.
    difference = np.abs(np.asarray(x) - np.asarray(y)) * GAIN - 1
    cells += [np.asarray(x), np.asarray(y), difference.clip(-1, 1)]
  return cells
