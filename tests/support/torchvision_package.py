"""Packages that import torchvision, where it may lack its compiled part.

That part is built for one PyTorch, with CUDA; beside another, importing
torchvision fails, since an operator is not there. Nothing here calls it.
"""

import functools
import importlib
import pathlib
import re

import pytest

# How torchvision names the operators of that part.
NAMED = re.compile(
  r'register_fake\("torchvision::(\w+)"|register_meta\("(\w+)"'
)


@functools.cache
def torchvision():
  """Imports torchvision; skips the test where it is not installed."""
  torch = pytest.importorskip('torch')
  spec = importlib.util.find_spec('torchvision')
  if spec is None:
    pytest.skip('pip install --no-deps torchvision')
  library = pathlib.Path(spec.origin).parent
  try:
    torch.ops.load_library(next(library.glob('_C*')))
  except (OSError, StopIteration):
    # Declared, so that they can be described, and never called.
    text = (library / '_meta_registrations.py').read_text()
    for names in NAMED.findall(text):
      torch.library.define(f'torchvision::{"".join(names)}', '() -> ()')
  return importlib.import_module('torchvision')


def prepare():
  """Makes torchvision importable for transformers, where it is installed."""
  if importlib.util.find_spec('torchvision') is not None:
    torchvision()


def pytorch_fid(module):
  """Imports a module of pytorch-fid, or skips the test."""
  torchvision()
  return pytest.importorskip(f'pytorch_fid.{module}')


def open_clip():
  """Imports open_clip, or skips the test."""
  torchvision()
  return pytest.importorskip('open_clip')
