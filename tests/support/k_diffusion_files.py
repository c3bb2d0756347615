"""k-diffusion's samplers, without the training code of its package."""

import importlib.util
import pathlib
import sys
import types

import pytest

# Imported for what no test calls: training, and adaptive solvers.
UNUSED = {
  'torchsde': {},
  'torchdiffeq': {'odeint': None},
  'k_diffusion.utils': {
    'append_dims': lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]
  },
}


def load(name):
  """Returns one file of the package as a module; skips a test without it."""
  pytest.importorskip('torch')
  spec = importlib.util.find_spec('k_diffusion')
  if spec is None:
    pytest.skip('could not find k_diffusion')
  with pytest.MonkeyPatch.context() as patch:
    package = types.ModuleType('k_diffusion')
    package.__path__ = list(spec.submodule_search_locations)
    patch.setitem(sys.modules, 'k_diffusion', package)
    for module, names in UNUSED.items():
      unused = types.ModuleType(module)
      vars(unused).update(names)
      patch.setitem(sys.modules, module, unused)
    package.utils = sys.modules['k_diffusion.utils']
    for file in dict.fromkeys(['sampling', name]):
      path = pathlib.Path(package.__path__[0]) / f'{file}.py'
      spec = importlib.util.spec_from_file_location(f'k_diffusion.{file}', path)
      module = importlib.util.module_from_spec(spec)
      setattr(package, file, module)
      patch.setitem(sys.modules, spec.name, module)
      spec.loader.exec_module(module)
  return module
