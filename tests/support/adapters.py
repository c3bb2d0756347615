"""Factors of all kinds beside the layers of a base, as training leaves them."""

import jax
import numpy as np
from flax import traverse_util

from sdxl_jax.models import lora
from sdxl_jax.weights.lora import trained_factors

UNET = r'unet/.*/(to_[qkv]|to_out_0|net_0/proj|conv2|conv_shortcut|proj_in)'
TEXT = r'text_encoder(_2)?/.*/([qkv]_proj|fc1)'
# {kind: fields of lora.Target}
KINDS = {
  'lora': dict(rank=3),
  'dora': dict(rank=3, dora_wd=True),
  'loha': dict(rank=2, algo='loha'),
  'lokr': dict(rank=1, algo='lokr'),
  'lokr_whole': dict(rank=128, algo='lokr', factor=2),
  'full': dict(rank=1, algo='full'),
}


def targets(kind, layers=f'{UNET}|{TEXT}', alpha=1.5):
  """The only target of a run of a kind."""
  return (lora.Target(kind, layers, alpha=alpha, **KINDS[kind]),)


def tree(params, of_run):
  """Random factors, of which none is zero; magnitudes stay near the norms."""
  scale = {'loha': 0.4, 'lokr': 0.3}.get(of_run[0].algo, 0.1)
  shapes = jax.eval_shape(
    lambda params: lora.init(jax.random.key(0), params, of_run), params
  )
  kernels = traverse_util.flatten_dict(params)
  rng, factors = np.random.default_rng(1), {}
  for path, x in traverse_util.flatten_dict(shapes).items():
    noise = scale * rng.standard_normal(x.shape).astype(np.float32)
    if path[-1] == 'magnitude':
      kernel = np.asarray(kernels[*path[:-1], 'kernel'])
      kernel = kernel.reshape(*x.shape[:-1], -1, x.shape[-1])
      noise = np.linalg.norm(kernel, axis=-2) * (1 + noise)
    factors[path] = noise
  return traverse_util.unflatten_dict(factors)


def made(params, kind, **settings):
  """A run's changes of a base."""
  of_run = targets(kind, **settings)
  return trained_factors.from_training(tree(params, of_run), of_run)
