"""Folders of the tiny base with other nets, what is new in them random."""

import dataclasses

import numpy as np
from flax import traverse_util

from sdxl_jax.weights import net_shapes, pretrained
from tests.support import folders, golden_sets

TINY = golden_sets.SETS[0] / 'tiny'


def fill(config, params=None):
  """The parameters of a config: given ones where they fit, random others."""
  given, rng = params or {}, np.random.default_rng(0)
  flat = dict(traverse_util.flatten_dict(given))
  shapes = traverse_util.flatten_dict(net_shapes.abstract_params(config))
  for path, leaf in shapes.items():
    if path not in flat or flat[path].shape != leaf.shape:
      scale = max(1, np.prod(leaf.shape[:-1])) ** -0.5
      flat[path] = np.float32(scale * rng.normal(size=leaf.shape))
  return traverse_util.unflatten_dict({path: flat[path] for path in shapes})


def write(folder, index=None, vae=None, **fields):
  """Writes the tiny base with fields of its UNet, or its VAE, replaced."""
  source = TINY / 'base'
  components = folders.load_all(source)
  config, params = components['unet']
  config = dataclasses.replace(config, **fields)
  components['unet'] = config, fill(config, params)
  if vae is not None:
    components['vae'] = vae, fill(vae, components['vae'][1])
  index = index or pretrained.ModelIndex(False, True)
  folders.save_all(source, folder, components, index)
