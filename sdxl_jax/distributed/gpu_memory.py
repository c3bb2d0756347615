"""The share of a GPU's memory that JAX allocates for arrays and programs."""

import os

# What JAX reads, and its former name; it refuses both together.
VARIABLES = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'
# Without either: docs.jax.dev/en/latest/gpu_memory_allocation.html
DEFAULT = 0.75
# For a process of its own. CUDA and cuDNN take less than half a GiB, which of a
# T4 is 3 %.
LARGE = 0.92


def enlarge() -> None:
  """Asks JAX for more than its default, unless the user has decided.

  It has no effect once JAX has looked for devices.
  """
  if not any(name in os.environ for name in VARIABLES):
    os.environ[VARIABLES[0]] = str(LARGE)


def fraction() -> float:
  """Returns the share that JAX allocates."""
  values = (os.environ.get(name) for name in VARIABLES)
  return float(next(filter(None, values), DEFAULT))
