"""Keys of seeds of 64 bits."""

import jax
import numpy as np
import pytest

from sdxl_jax.diffusion import random_keys

SEEDS = 0, 1, 7, 2**31, 2**32 - 1


@pytest.mark.parametrize('kind', ['threefry2x32', 'rbg'])
def test_seeds_of_32_bits_give_the_keys_of_jax(kind):
  with jax.default_prng_impl(kind):
    keys = random_keys.make_keys(SEEDS)
    of_jax = [jax.random.key(seed) for seed in SEEDS]
    assert keys.dtype == of_jax[0].dtype
    for key, other in zip(keys, of_jax):
      expected = jax.random.key_data(other)
      np.testing.assert_array_equal(jax.random.key_data(key), expected)


def test_every_seed_of_64_bits_has_its_own_numbers():
  seeds = [*SEEDS, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
  seeds.append(12345678901234567890)
  keys = random_keys.make_keys(seeds)
  drawn = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
  assert len({tuple(row) for row in np.asarray(drawn).tolist()}) == len(seeds)
  # Both halves count, each in its place.
  pair = jax.random.key_data(random_keys.make_keys([(5 << 32) + 6]))
  assert pair.tolist() == [[5, 6]]


@pytest.mark.parametrize('seed', [-1, 2**64])
def test_other_seeds_are_refused(seed):
  with pytest.raises(ValueError, match=f'seed {seed} is not from 0 to 2'):
    random_keys.make_keys([0, seed])
