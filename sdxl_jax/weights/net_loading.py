"""Loads several nets of pretrained weights, and shows the progress."""

import math
from collections.abc import Callable
from typing import Any

import jax
import tqdm

from sdxl_jax.weights import pretrained, quantization

DELAY = 2  # seconds; what loads in less shows no bar


def load_all(
  nets: dict[str, pretrained.Net],
  shards: dict[str, Callable[[pretrained.Tree], pretrained.Tree]],
  fields: dict[str, dict[str, Any]],
) -> dict[str, tuple[pretrained.NetConfig, pretrained.Tree]]:
  """Loads {name: (config, params)}, with one bar for all nets.

  Args:
    nets: to load, by name.
    shards: adds shardings to the shapes of each net, see pretrained.Net.load.
    fields: of the config of each net.

  Raises:
    ValueError: for a config that no net can have, before any net is loaded; or
      for a net that cannot be loaded.
  """
  total = sum(size(net, fields[name]) for name, net in nets.items())
  with tqdm.tqdm(
    total=total,
    desc='loading',
    unit='B',
    unit_scale=True,
    delay=DELAY,
    disable=jax.process_index() > 0,
  ) as bar:
    return {
      name: net.load(shards[name], bar.update, **fields[name])
      for name, net in nets.items()
    }


def size(net: pretrained.Net, fields: dict[str, Any]) -> int:
  """Returns the bytes of a net's parameters as they are read."""
  shapes = net.shapes(net.config(**fields))
  leaves = jax.tree.leaves(quantization.without_scales(shapes))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
