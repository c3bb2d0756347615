"""Low-rank factors as published, and their merge into a base model.

W becomes W + weight * alpha / r * up @ down, with up [out, r] and down [r, in].
"""

import collections
import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sdxl_jax.models import lora
from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names


class Factors(NamedTuple):
  """The published factors of one layer, of any floating-point dtype."""

  down: np.ndarray  # [r, in] or [r, in, kh, kw]
  up: np.ndarray  # [out, r] or [out, r, 1, 1]
  alpha: np.ndarray | None = None  # []; None: the rank

  @property
  def scale(self) -> float:
    """alpha / r, by which the product is scaled."""
    return 1.0 if self.alpha is None else float(self.alpha) / len(self.down)


@dataclasses.dataclass(frozen=True)
class Lora:
  """The factors of a file, and its metadata."""

  factors: dict[tuple[str, str], Factors]  # {(net, published layer): Factors}
  key_format: str = 'kohya'  # one of lora_names.KEY_FORMATS
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)

  def of(self, nets: Collection[str]) -> 'Lora':
    """Returns the factors that belong to some nets."""
    factors = {key: f for key, f in self.factors.items() if key[0] in nets}
    return dataclasses.replace(self, factors=factors)


Layers = dict[tuple[str, str], tensor_names.TensorLocation]


def layers_of(params: dict[str, Any]) -> Layers:
  """Returns {(net, published name): location} of all layers with a kernel."""
  layers = {}
  for net in lora.NETS:
    flat = traverse_util.flatten_dict(params.get(net, {}))
    for name, location in tensor_names.locations(flat).items():
      if location.path[-1] == 'kernel':
        layers[net, name.removesuffix('.weight')] = location
  return layers


def from_training(tree: dict[str, Any], targets: Sequence[lora.Target]) -> Lora:
  """Converts trained factors to published ones.

  Args:
    tree: {net: {..., 'a', 'b'}}, see models/lora.py.
    targets: of the run; they have alpha.
  """
  factors = {}
  for net, of_net in tree.items():
    flat = traverse_util.flatten_dict(of_net)
    # `a` has the axes of its kernel, so the rules for kernels apply.
    downs = {(*p[:-1], 'kernel'): x for p, x in flat.items() if p[-1] == 'a'}
    for name, location in tensor_names.locations(downs).items():
      layer = location.path[:-1]
      (target,) = (t for t in targets if lora.matches(t, (net, *layer)))
      down = tensor_names.tensor(downs, location)
      # b [r, out] is up [out, r], with two axes of 1 for a convolution.
      up = np.asarray(flat[*layer, 'b'])
      up = (up if location.index is None else up[location.index]).T
      up = up.reshape(*up.shape, *[1] * (down.ndim - 2))
      key = net, name.removesuffix('.weight')
      factors[key] = Factors(down, up, np.float32(target.alpha))
  return Lora(factors)


def merge(
  params: dict[str, Any], loras: Sequence[tuple[Lora, float]]
) -> dict[str, Any]:
  """Adds weight * alpha / r * up @ down to every layer that has factors.

  The sum is taken in float32 and rounded once to the dtype of W. One layer is
  merged at a time, on its own device; the arrays of `params` are donated.

  Args:
    params: {net: parameters}, stacked or not.
    loras: [(Lora, weight)].

  Returns:
    {net: parameters}.
  """
  # A layer may have factors of several files.
  layers = layers_of(params)
  flat = {n: traverse_util.flatten_dict(params[n]) for n, _ in layers}
  terms = collections.defaultdict(list)
  for adapter, weight in loras:
    for key, factors in adapter.factors.items():
      terms[key].append((factors, weight * factors.scale))
  for (net, name), summands in terms.items():
    location = layers[net, name]
    a, b = join_factors(summands, location.shape)
    kernel = jnp.asarray(flat[net][location.path])
    # An offloaded kernel visits the device for the sum.
    home = kernel.sharding
    on_device = home.with_memory_kind('device')
    kernel = jax.device_put(kernel, on_device)
    kernel = make_adder(on_device)(kernel, location.index, a, b)
    flat[net][location.path] = jax.device_put(kernel, home)
  merged = {n: traverse_util.unflatten_dict(tree) for n, tree in flat.items()}
  return params | merged


def join_factors(
  summands: Sequence[tuple[Factors, float]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Joins the factors of a layer: a sum of products is one of all ranks.

  Args:
    summands: [(Factors, scale)].
    shape: of the published weight, [out, in] or [out, in, kh, kw].

  Returns:
    a [in, r] or [kh, kw, in, r], and b [r, out], scaled.
  """
  downs = [np.float32(f.down.reshape(-1, *shape[1:])) for f, _ in summands]
  a = np.concatenate(downs).T
  a = a.swapaxes(0, 1) if a.ndim == 4 else a  # WHIR to HWIR
  ups = [
    scale * np.float32(factors.up).reshape(shape[0], -1)
    for factors, scale in summands
  ]
  return a, np.concatenate(ups, axis=1).T


def merge_published(
  net: pretrained.Net, loras: Sequence[tuple[Lora, float]]
) -> pretrained.Net:
  """Returns a net to whose tensors factors are added when they are read."""
  terms = collections.defaultdict(list)
  for adapter, weight in loras:
    for (name, layer), factors in adapter.factors.items():
      if name == net.name:
        scaled = weight * factors.scale, factors
        terms[f'{layer}.weight'].append(scaled)

  def read():
    tensors = net.tensors()
    for name, summands in terms.items():
      tensor = tensors[name]
      merged = functools.partial(read_merged, tensor, summands)
      tensors[name] = dataclasses.replace(tensor, read=merged)
    return tensors

  if not terms:
    return net
  return dataclasses.replace(
    net, read=read, restore=None, left_out=net.passed_over()
  )


def read_merged(
  tensor: safetensors_file.LazyTensor,
  summands: Sequence[tuple[float, Factors]],
) -> np.ndarray:
  """Reads a published weight and adds products of factors in float32."""
  total = np.float32(tensor.read())
  for scale, factors in summands:
    up = np.float32(factors.up).reshape(len(factors.up), -1)
    down = np.float32(factors.down)
    product = up @ down.reshape(len(down), -1)
    total = total + np.float32(scale) * product.reshape(total.shape)
  return total.astype(tensor.dtype)


@functools.cache
def make_adder(sharding: jax.sharding.Sharding) -> jax.stages.Wrapped:
  """Compiles `add_product`, whose result has a sharding."""
  return jax.jit(add_product, donate_argnums=0, out_shardings=sharding)


def add_product(
  kernel: jax.Array, index: jax.Array | None, a: jax.Array, b: jax.Array
) -> jax.Array:
  """Adds a @ b to a kernel, or to kernel `index` of a stack."""
  one = kernel if index is None else kernel[index]
  product = jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
  one = (one.astype(jnp.float32) + product).astype(kernel.dtype)
  return one if index is None else kernel.at[index].set(one)
