"""The share of a GPU's memory that JAX allocates for arrays and programs."""

import os

# What JAX reads, and its former name; it refuses both together.
VARIABLES = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'
# For a process of its own, as every command is. CUDA and cuDNN take less than
# half a GiB, which of a T4 is 3 %. JAX's own default is 0.75:
# docs.jax.dev/en/latest/gpu_memory_allocation.html
SHARE = 0.92


def enlarge() -> None:
  """Asks JAX for SHARE, unless the user has decided.

  It has no effect once JAX has looked for devices.
  """
  if not any(name in os.environ for name in VARIABLES):
    os.environ[VARIABLES[0]] = str(SHARE)


def fraction() -> float:
  """Returns the share that JAX allocates after `enlarge`."""
  values = (os.environ.get(name) for name in VARIABLES)
  return float(next(filter(None, values), SHARE))
