"""Runs conversions in tests, and reads the tensors of what they wrote."""

import numpy as np
import safetensors.numpy

from sdxl_jax import convert
from sdxl_jax.checkpoints import word_export


def run(source, target, to, **settings):
  """Converts a model and returns the lines that were printed.

  Settings are fields of convert.Source, of convert.Target, or `dry_run`.
  """
  return run_with(convert.convert, source, target, to, settings)


def run_lora(source, target, key_format='kohya', **settings):
  """Converts a LoRA and returns the lines that were printed."""
  settings['key_format'] = key_format
  return run_with(convert.convert_lora, source, target, 'lora', settings)


def run_embedding(source, target, key_format='kohya', **settings):
  """Converts a learned word and returns the lines that were printed."""
  settings['key_format'] = key_format
  return run_with(word_export.convert, source, target, 'embedding', settings)


def run_with(function, source, target, to, settings):
  """Splits the settings and calls a function of convert."""
  dry_run, lines = settings.pop('dry_run', False), []
  of_source = {
    name: settings.pop(name)
    for name in ('base', 'average', 'loras', 'options', 'vae')
    if name in settings
  }
  function(
    convert.Source(source, **of_source),
    convert.Target(target, to, **settings),
    dry_run,
    lines.append,
  )
  return '\n'.join(lines)


def tensors(path):
  """Reads {(folder of the file, name): array} of all safetensors at a path."""
  files = [path] if path.is_file() else sorted(path.rglob('*.safetensors'))
  return {
    (file.parent.name if path.is_dir() else '', name): array
    for file in files
    for name, array in safetensors.numpy.load_file(file).items()
  }


def check_same(actual, expected):
  """Asserts that two dicts of arrays are equal, dtypes included."""
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    assert actual[name].dtype == array.dtype, name
    np.testing.assert_array_equal(actual[name], array, str(name))
