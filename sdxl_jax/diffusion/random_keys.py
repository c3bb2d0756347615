"""Keys of random streams from seeds of 64 bits."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key

LARGEST_SEED = 2**64 - 1


def make_keys(seeds: Sequence[int]) -> Key[Array, ' n']:
  """Makes one key per seed; seeds from 0 to 2**64 - 1 give distinct keys.

  Below 2**32 they are those of jax.random.key, which without x64 drops all
  higher bits of a seed, and fails from 2**63 on.

  Raises:
    ValueError: for a seed of more than 64 bits, or below 0.
  """
  for seed in seeds:
    if not 0 <= seed <= LARGEST_SEED:
      raise ValueError(f'seed {seed} is not from 0 to 2**64 - 1')
  # A key holds both halves of the seed, and those of some generators twice.
  halves = [[seed >> 32, seed & 0xFFFFFFFF] for seed in seeds]
  times = jax.random.key_data(jax.random.key(0)).size // 2
  data = np.tile(np.array(halves, np.uint32).reshape(-1, 2), (1, times))
  return jax.random.wrap_key_data(data)
