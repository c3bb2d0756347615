"""The contents of LoRA files, and their merge into a base model.

W becomes W + weight * alpha / r * up @ down, with up [out, r] and down [r, in];
for other changes of a weight see `deltas`.
"""

import collections
import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from sdxl_jax.models import lora
from sdxl_jax.weights import pretrained, quantization, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.lora import deltas


@dataclasses.dataclass(frozen=True)
class Lora:
  """The factors of a file, its other changes, and its metadata."""

  # {(net, published layer): factors}
  factors: dict[tuple[str, str], deltas.Factors]
  key_format: str = 'kohya'  # one of lora_names.KEY_FORMATS
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)
  # {(net, published name of a tensor): change} by other methods than plain
  # LoRA, and of biases and norms.
  others: dict[tuple[str, str], deltas.Delta] = dataclasses.field(
    default_factory=dict
  )
  notes: tuple[str, ...] = ()  # what was passed over, for the user

  def of(self, nets: Collection[str]) -> 'Lora':
    """Returns the changes that belong to some nets."""
    factors = {key: f for key, f in self.factors.items() if key[0] in nets}
    others = {key: d for key, d in self.others.items() if key[0] in nets}
    return dataclasses.replace(self, factors=factors, others=others)

  def changes(self) -> dict[tuple[str, str], deltas.Delta]:
    """Returns {(net, published name of a tensor): change} of all tensors."""
    changes = {
      (net, f'{layer}.weight'): factors
      for (net, layer), factors in self.factors.items()
    }
    return changes | self.others


Locations = dict[tuple[str, str], tensor_names.TensorLocation]
Terms = list[tuple[deltas.Delta, float]]  # changes of a tensor, with strengths


def tensors_of(params: dict[str, Any]) -> Locations:
  """Returns {(net, published name): location} of all tensors of NETS."""
  tensors = {}
  for net in lora.NETS:
    flat = traverse_util.flatten_dict(params.get(net, {}))
    for name, location in tensor_names.locations(flat).items():
      tensors[net, name] = location
  return tensors


def kernels_of(params: dict[str, Any]) -> Locations:
  """Returns {(net, published layer): location} of all layers with a kernel."""
  return {
    (net, name.removesuffix('.weight')): location
    for (net, name), location in tensors_of(params).items()
    if location.path[-1] == 'kernel'
  }


def merge(
  params: dict[str, Any], loras: Sequence[tuple[Lora, float]]
) -> dict[str, Any]:
  """Adds the changes of LoRA files to parameters.

  Sums are taken in float32 and rounded once to the dtype of W. One tensor is
  changed at a time, on its own device; the arrays of `params` are donated.

  Args:
    params: {net: parameters}, stacked or not.
    loras: [(Lora, weight)]; where a change depends on W, as of DoRA, W has the
      changes of the files before.

  Returns:
    {net: parameters}.
  """
  check_stored(params)
  locations = tensors_of(params)
  nets = dict.fromkeys(net for net, _ in locations)
  flat = {net: traverse_util.flatten_dict(params[net]) for net in nets}
  for (net, name), terms in terms_by_tensor(loras).items():
    location = locations[net, name]
    whole = jnp.asarray(flat[net][location.path])
    # An offloaded array visits the device for the sum.
    home = whole.sharding
    on_device = home.with_memory_kind('device')
    whole = jax.device_put(whole, on_device)
    if all(isinstance(delta, deltas.Factors) for delta, _ in terms):
      a, b = join_factors(terms, location.shape)
      whole = make_adder(on_device)(whole, location.index, a, b)
    else:
      new = change(whole, location, terms)
      whole = make_setter(on_device)(whole, location.index, new)
    flat[net][location.path] = jax.device_put(whole, home)
  merged = {n: traverse_util.unflatten_dict(tree) for n, tree in flat.items()}
  return params | merged


def check_stored(params: dict[str, Any]) -> None:
  """Raises ValueError for kernels in 8 bits, into which no LoRA is merged."""
  for net in lora.NETS:
    flat = traverse_util.flatten_dict(params.get(net, {}))
    if quantization.stored_layers(flat):
      raise ValueError(
        f'the kernels of {net} are stored in 8 bits, which have too few digits '
        'for the changes of a LoRA: load them with the LoRA (--lora), which is '
        'then merged first, or leave weights_dtype out'
      )


def with_copies(
  params: dict[str, Any], loras: Sequence[tuple[Lora, float]]
) -> dict[str, Any]:
  """Copies the arrays that `merge` would donate, so that `params` stay.

  Args:
    params, loras: see `merge`.
  """
  check_stored(params)
  locations = tensors_of(params)
  paths = {(n, locations[n, name].path) for n, name in terms_by_tensor(loras)}
  flat = {n: traverse_util.flatten_dict(params[n]) for n, _ in paths}
  for net, path in paths:
    array = flat[net][path]
    flat[net][path] = jax.device_put(array, array.sharding, may_alias=False)
  copied = {n: traverse_util.unflatten_dict(tree) for n, tree in flat.items()}
  return params | copied


def terms_by_tensor(
  loras: Sequence[tuple[Lora, float]],
) -> dict[tuple[str, str], Terms]:
  """Returns {(net, published name): changes in the order of the files}."""
  terms = collections.defaultdict(list)
  for adapter, weight in loras:
    for key, delta in adapter.changes().items():
      terms[key].append((delta, weight))
  return terms


def change(
  whole: jax.Array, location: tensor_names.TensorLocation, terms: Terms
) -> np.ndarray:
  """Applies changes to a tensor of ours, on the host.

  Args:
    whole: the array with the tensor.
    location: of the tensor.
    terms: changes, with their strengths.

  Returns:
    The tensor in our layout, float32.
  """
  one = whole
  if location.index is not None:
    one = jax.lax.dynamic_index_in_dim(whole, location.index, keepdims=False)
  # In the published layout, and back.
  axes = tensor_names.axes(location.path, one.ndim)
  weight = apply(np.float32(np.asarray(one)).transpose(axes), terms)
  return np.ascontiguousarray(weight.transpose(np.argsort(axes)))


def apply(weight: np.ndarray, terms: Terms) -> np.ndarray:
  """Applies changes to a published tensor; returns float32."""
  total = np.float32(weight)
  for delta, strength in terms:
    total = delta.merged(total, strength)
  return total


def join_factors(
  terms: Sequence[tuple[deltas.Factors, float]], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
  """Joins the factors of a layer: a sum of products is one of all ranks.

  Args:
    terms: [(factors, strength)].
    shape: of the published weight, [out, in] or [out, in, kh, kw].

  Returns:
    a [in, r] or [kh, kw, in, r], and b [r, out], scaled.
  """
  downs = [np.float32(f.down.reshape(-1, *shape[1:])) for f, _ in terms]
  a = np.concatenate(downs).T
  a = a.swapaxes(0, 1) if a.ndim == 4 else a  # WHIR to HWIR
  ups = [
    strength * factors.scale * np.float32(factors.up).reshape(shape[0], -1)
    for factors, strength in terms
  ]
  return a, np.concatenate(ups, axis=1).T


def merge_published(
  net: pretrained.Net, loras: Sequence[tuple[Lora, float]]
) -> pretrained.Net:
  """Returns a net whose tensors have the changes of LoRA files when read."""
  terms_of_net = {
    name: terms
    for (component, name), terms in terms_by_tensor(loras).items()
    if component == net.name
  }

  def read():
    tensors = net.tensors()
    for name, terms in terms_of_net.items():
      tensor = tensors[name]
      changed = functools.partial(read_changed, tensor, terms)
      tensors[name] = dataclasses.replace(tensor, read=changed)
    return tensors

  if not terms_of_net:
    return net
  return dataclasses.replace(
    net, read=read, restore=None, left_out=net.passed_over()
  )


def read_changed(
  tensor: safetensors_file.LazyTensor, terms: Terms
) -> np.ndarray:
  """Reads a published tensor and changes it in float32."""
  return apply(tensor.read(), terms).astype(tensor.dtype)


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


@functools.cache
def make_setter(sharding: jax.sharding.Sharding) -> jax.stages.Wrapped:
  """Compiles `set_one`, whose result has a sharding."""
  return jax.jit(set_one, donate_argnums=0, out_shardings=sharding)


def set_one(
  whole: jax.Array, index: jax.Array | None, one: jax.Array
) -> jax.Array:
  """Replaces an array, or array `index` of a stack."""
  one = one.astype(whole.dtype)
  return one if index is None else whole.at[index].set(one)
