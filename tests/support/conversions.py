"""Conversions as tests run them, and the numbers in what they wrote."""

import numpy as np
import safetensors.numpy

from sdxl_jax import convert


def run(source, target, to, **settings):
  """The lines that a conversion says."""
  lines = []
  convert.convert(source, target, to, say=lines.append, **settings)
  return '\n'.join(lines)


def tensors(path):
  """{file's folder and tensor's name: array} of all safetensors at a path."""
  found = [path] if path.is_file() else sorted(path.rglob('*.safetensors'))
  return {
    (file.parent.name if path.is_dir() else '', name): array
    for file in found
    for name, array in safetensors.numpy.load_file(file).items()
  }


def check_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found[name], array, str(name))
