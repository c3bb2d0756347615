"""Converts what a run trained in place of kernels to changes of published ones.

Our factors [in, r] and [r, out] are the published [r, in] and [out, r]; see
models/lora_kinds.py for the kinds, and `deltas` for what becomes of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from sdxl_jax.models import lora, lora_kinds
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.lora import deltas, merge

# Factors with the axes of a kernel, by which a layer is found in its stack.
DOWN = ('a', 'a1', 'w2', 'w2_a', 'd')


def from_training(
  tree: dict[str, Any],
  targets: Sequence[lora.Target],
  fetch: Callable[[Any], np.ndarray] = np.asarray,
) -> merge.Lora:
  """Converts trained factors to published ones.

  Args:
    tree: {net: {..., 'a', 'b'}}, see models/lora.py.
    targets: of the run; they have the scale.
    fetch: copies an array to this host.
  """
  factors, others = {}, {}
  for net, of_net in tree.items():
    arrays = traverse_util.flatten_dict(of_net)
    flat = {path: fetch(x) for path, x in arrays.items()}
    # The rules for kernels apply to what has the axes of a kernel.
    kernels = {(*p[:-1], 'kernel'): x for p, x in flat.items() if p[-1] in DOWN}
    for name, location in tensor_names.locations(kernels).items():
      layer = location.path[:-1]
      (target,) = (t for t in targets if lora.matches(t, (net, *layer)))
      delta = make_delta(factors_of(flat, layer, location.index), target)
      if isinstance(delta, deltas.Factors):
        factors[net, name.removesuffix('.weight')] = delta
      else:
        others[net, name] = delta
  return merge.Lora(factors, others=others)


def factors_of(
  flat: dict[tuple[str, ...], Any], layer: tuple[str, ...], index: int | None
) -> dict[str, np.ndarray]:
  """Returns {name: array} of the factors of a layer, out of its stack."""
  found = {path[-1]: x for path, x in flat.items() if path[:-1] == layer}
  return {n: x if index is None else x[index] for n, x in found.items()}


def make_delta(
  factors: dict[str, np.ndarray], target: lora.Target
) -> deltas.Delta:
  """Makes the change of a published weight from the factors of a layer."""
  scale = target.alpha / target.rank
  if 'a' in factors:
    # Two axes of 1 for a convolution.
    down = publish(factors['a'])
    up = factors['b'].T
    up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
    delta = deltas.Factors(down, up, np.float32(target.alpha))
  elif 'a1' in factors:
    first, second = (
      deltas.Half(a=factors[f'b{i}'].T, b=flatten(publish(factors[f'a{i}'])))
      for i in '12'
    )
    delta = deltas.Hadamard(first, second, scale)
  elif 'w1' in factors:
    first = deltas.Half(factors['w1'].T)
    if 'w2' in factors:
      second, scale = deltas.Half(publish(factors['w2'])), 1.0
    else:
      b = flatten(publish(factors['w2_a']))
      second = deltas.Half(a=factors['w2_b'].T, b=b)
    delta = deltas.Kronecker(first, second, scale)
  else:
    delta = deltas.Difference(publish(factors['d']))
  magnitude = factors.get(lora_kinds.MAGNITUDE)
  if magnitude is None:
    return delta
  ones = max(publish(x).ndim for name, x in factors.items() if name in DOWN) - 1
  return deltas.Decomposed(delta, magnitude.reshape(-1, *[1] * ones))


def publish(array: np.ndarray) -> np.ndarray:
  """Returns an array with the axes of a kernel in the published order."""
  return array.transpose(tensor_names.axes(('kernel',), array.ndim))


def flatten(array: np.ndarray) -> np.ndarray:
  """Returns a published array as a matrix."""
  return array.reshape(len(array), -1)
