"""Random ControlNets for the tiny base, and the same as diffusers' modules."""

import dataclasses
import pathlib

import jax
import numpy as np

from sdxl_jax.models import controlnet, unet
from sdxl_jax.weights import pretrained
from sdxl_jax.weights.diffusers import config_json, folder_writer, tensor_names
from tests.support import folders, golden_sets, random_nets

TINY = golden_sets.SETS[0] / 'tiny'
TYPES = 6


def make_config(union=False, **fields):
  """The config of a ControlNet for the tiny base, or of a union net."""
  base = folders.load_config(TINY / 'base', 'unet')
  shared = {
    f.name: getattr(base, f.name) for f in dataclasses.fields(unet.UNetConfig)
  }
  shared |= {'conditioning_features': (4, 6, 8, 10), 'fusion_heads': 2}
  types = {'control_types': TYPES} if union else {}
  return controlnet.ControlNetConfig(**shared | types | fields)


def random_params(config, seed=0):
  """Parameters without zeros, so that the net changes something."""
  params = random_nets.fill(config)
  rng = np.random.default_rng(seed)

  def shift(x):
    return x + np.float32(0.02 * rng.normal(size=x.shape))

  return jax.tree.map(shift, params)


def write(folder, config, params, **settings):
  """Writes a folder as diffusers' save_pretrained does; see save_net."""
  net = pretrained.from_params('controlnet', config, lambda target: params)
  folder_writer.save_net(pathlib.Path(folder), net, **settings)
  return folder


def in_diffusers(config, params):
  """The same net as a module of diffusers."""
  import diffusers
  import torch

  published = config_json.write('controlnet', config)
  net = getattr(diffusers, published['_class_name']).from_config(published)
  tensors = tensor_names.tensors(params)
  net.load_state_dict(
    {n: torch.from_numpy(np.array(t.read())) for n, t in tensors.items()}
  )
  return net.eval()
