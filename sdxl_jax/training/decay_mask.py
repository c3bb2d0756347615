"""Which parameters decay."""

from typing import Any

import jax
import optax


def make_decay_mask(params: optax.Params) -> Any:
  """Selects what decays: kernels and low-rank factors, no biases or norms."""

  def decays(path, leaf):
    del leaf
    return path[-1].key in ('kernel', 'a', 'b')

  return jax.tree_util.tree_map_with_path(decays, params)
