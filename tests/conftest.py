"""Fixtures shared by all tests; golden numbers live in tests/golden."""

import atexit
import importlib.util
import json
import os
import shutil
import tempfile

from tests.support import xla_flags

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# No test asks the Hugging Face hub.
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('XLA_FLAGS', xla_flags.flags(devices=4))
# Programs are compiled once for all workers, and for the commands they start.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  programs = tempfile.mkdtemp(prefix='programs')
  atexit.register(shutil.rmtree, programs, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = programs
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import jax
import jaxtyping
import numpy as np
import pytest

from tests.support.golden_sets import GOLDEN, SETS

# Types and shapes in the signatures of these rooms are checked at every call.
CHECKED_ROOMS = (
  'models',
  'diffusion',
  'text',
  'ema',
  'sampling',
  'checkpoints',
)
if importlib.util.find_spec('beartype') is None:
  raise pytest.UsageError(
    'beartype is not installed, which checks types and shapes in the tests: '
    'pip install beartype'
  )
from tests.support import type_check  # noqa: E402, needs beartype

jaxtyping.install_import_hook(
  [f'sdxl_jax.{room}' for room in CHECKED_ROOMS],
  f'{type_check.__name__}.check',
)

jax.config.update('jax_default_matmul_precision', 'highest')


@pytest.fixture(scope='module', autouse=True)
def spare_memory():
  """What one file's tests compiled is of no use to the next one's."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session', params=SETS, ids=lambda p: p.name)
def golden(request):
  """The folder of one set of reference numbers."""
  return request.param


@pytest.fixture(scope='session')
def keys():
  """The folder of full-size key lists and configs."""
  return GOLDEN / 'keys'


@pytest.fixture(scope='session')
def tolerances():
  """The limits recommended for a float32 port, by name."""
  return json.loads((GOLDEN / 'recommended_tolerances.json').read_text())


@pytest.fixture(scope='session')
def close():
  """check(actual, expected, limit): max error <= limit * max |expected|."""

  def check(actual, expected, limit, what=''):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= limit, f'{what}: relative error {error:.2e} > {limit}'

  return check
