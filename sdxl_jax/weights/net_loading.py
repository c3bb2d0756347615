"""Loads several nets of pretrained weights, and shows the progress."""

import math
from collections.abc import Callable
from concurrent import futures
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
    ValueError: for a net that cannot be built from its config, or loaded.
  """
  with (
    futures.ThreadPoolExecutor(1) as ahead,
    tqdm.tqdm(
      total=0,
      desc='loading',
      unit='B',
      unit_scale=True,
      delay=DELAY,
      disable=jax.process_index() > 0,
    ) as bar,
  ):

    def trace(name):
      bar.total += size(nets[name], fields[name])

    # The UNet, which comes first, takes longest to trace: the others are loaded
    # in the meantime.
    order = list(reversed(nets))
    traced = {name: ahead.submit(trace, name) for name in order}
    loaded = {}
    try:
      for name in order:
        traced[name].result()
        net, shard = nets[name], shards[name]
        loaded[name] = net.load(shard, bar.update, **fields[name])
    finally:
      ahead.shutdown(cancel_futures=True)
  return {name: loaded[name] for name in nets}


def size(net: pretrained.Net, fields: dict[str, Any]) -> int:
  """Returns the bytes of a net's parameters as they are read."""
  shapes = net.shapes(net.config(**fields))
  leaves = jax.tree.leaves(quantization.without_scales(shapes))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
