"""Low-rank factors as published, and merged into a base model's parameters.

W becomes W + weight * alpha / r * up @ down, with up [out, r] and down [r, in].
"""

import collections
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sdxl_jax.models import lora
from sdxl_jax.weights.diffusers import tensor_names


class Factors(NamedTuple):
  """Those of one layer, as published: numpy, in any float type."""

  down: np.ndarray  # [r, in] or [r, in, kh, kw]
  up: np.ndarray  # [out, r] or [out, r, 1, 1]
  alpha: np.ndarray | None = None  # []; None: as large as the rank

  @property
  def scale(self):
    return 1.0 if self.alpha is None else float(self.alpha) / len(self.down)


@dataclasses.dataclass(frozen=True)
class Lora:
  """What a file holds."""

  factors: dict[tuple[str, str], Factors]  # {(net, published layer): Factors}
  dialect: str = 'kohya'
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)

  def of(self, nets):
    """The part of it that these nets have."""
    kept = {key: f for key, f in self.factors.items() if key[0] in nets}
    return dataclasses.replace(self, factors=kept)


def layers_of(params):
  """{(net, published name): names.Slot} of all layers with a kernel."""
  found = {}
  for net in lora.NETS:
    flat = traverse_util.flatten_dict(params.get(net, {}))
    for name, slot in tensor_names.locations(flat).items():
      if slot.path[-1] == 'kernel':
        found[net, name.removesuffix('.weight')] = slot
  return found


def from_training(tree, targets):
  """The Lora of trained factors.

  Args:
    tree: {net: {..., 'a', 'b'}}, see models/lora.py.
    targets: models.lora.Targets, which tell alpha.
  """
  factors = {}
  for net, of_net in tree.items():
    flat = traverse_util.flatten_dict(of_net)
    downs = {(*p[:-1], 'kernel'): x for p, x in flat.items() if p[-1] == 'a'}
    for name, slot in tensor_names.locations(downs).items():
      layer = slot.path[:-1]
      (target,) = (t for t in targets if lora.matches(t, (net, *layer)))
      down, up = tensor_names.tensor(downs, slot), np.asarray(flat[*layer, 'b'])
      up = (up if slot.index is None else up[slot.index]).T
      up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
      key = net, name.removesuffix('.weight')
      factors[key] = Factors(down, up, np.float32(target.alpha))
  return Lora(factors)


def merge(params, loras):
  """W + weight * alpha / r * up @ down of every layer that has factors.

  The sum is taken in float32 and rounded once to what W is stored in. One layer
  is worked on at a time, where it lies; arrays given are spent.

  Args:
    params: {net: parameters}, stacked or not.
    loras: [(Lora, weight)].

  Returns:
    {net: parameters}.
  """
  layers = layers_of(params)
  flat = {n: traverse_util.flatten_dict(params[n]) for n, _ in layers}
  terms = collections.defaultdict(list)
  for made, weight in loras:
    for key, factors in made.factors.items():
      terms[key].append((factors, weight * factors.scale))
  for (net, name), summands in terms.items():
    slot = layers[net, name]
    # A sum of products is one product of all ranks together.
    as_layer = lambda down, shape=slot.shape: down.reshape(-1, *shape[1:])
    a = np.concatenate([np.float32(as_layer(f.down)) for f, _ in summands]).T
    a = a.swapaxes(0, 1) if a.ndim == 4 else a  # WHIR > HWIR
    ups = [s * np.float32(f.up).reshape(slot.shape[0], -1) for f, s in summands]
    b = np.concatenate(ups, axis=1).T
    kernel = jnp.asarray(flat[net][slot.path])
    home = kernel.sharding  # it may be offloaded to the host
    there = home.with_memory_kind('device')
    summed = adder(there)(jax.device_put(kernel, there), slot.index, a, b)
    flat[net][slot.path] = jax.device_put(summed, home)
  merged = {n: traverse_util.unflatten_dict(tree) for n, tree in flat.items()}
  return params | merged


def merge_published(net, loras):
  """The published.Net with factors added to its tensors as they are read."""
  terms = collections.defaultdict(list)
  for made, weight in loras:
    for (name, layer), factors in made.factors.items():
      if name == net.name:
        scaled = weight * factors.scale, factors
        terms[f'{layer}.weight'].append(scaled)

  def read():
    found = net.tensors()
    for name, summands in terms.items():
      tensor = found[name]
      added = functools.partial(read_added, tensor, summands)
      found[name] = dataclasses.replace(tensor, read=added)
    return found

  return dataclasses.replace(net, read=read, restore=None) if terms else net


def read_added(tensor, summands):
  total = np.float32(tensor.read())
  for scale, factors in summands:
    up = np.float32(factors.up).reshape(len(factors.up), -1)
    down = np.float32(factors.down)
    product = up @ down.reshape(len(down), -1)
    total = total + np.float32(scale) * product.reshape(total.shape)
  return total.astype(tensor.dtype)


@functools.cache
def adder(sharding):
  return jax.jit(add, donate_argnums=0, out_shardings=sharding)


def add(kernel, index, a, b):
  """kernel + a b, or that to one kernel of a stack."""
  one = kernel if index is None else kernel[index]
  product = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
  one = (one.astype(jnp.float32) + product).astype(kernel.dtype)
  return one if index is None else kernel.at[index].set(one)
