"""Low-rank adaptation of the kernels of a net (Hu et al. 2021, LoRA).

W becomes W + alpha / r * a b, where a [in, r] and b [r, out] are trained in
place of W [in, out]. The nets have no code for it: under `apply` each layer
that has factors in the collection 'lora' adds their product to its output.
"""

import dataclasses
import difflib
import re
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import PRNGKeyArray

from sdxl_jax.models import stored_kernels

NETS = ('unet', 'text_encoder', 'text_encoder_2')


Path = tuple[str, ...]  # of a layer in the tree {net: parameters}


@dataclasses.dataclass(frozen=True)
class Target:
  """Selects layers to adapt, with the rank and the scale of their factors."""

  name: str  # in the config
  layers: str  # pattern of whole paths, as unet/.*/attn[12]/to_[qkv]
  rank: int
  alpha: float  # the product of the factors is scaled by alpha / rank


def init(
  key: PRNGKeyArray, params: dict[str, Any], targets: Iterable[Target]
) -> dict[str, Any]:
  """Returns fresh factors, whose product is zero.

  Args:
    key: jax key.
    params: {net: parameters, or their shapes}.
    targets: layers to adapt.

  Returns:
    {net: {..., 'a', 'b'}}, float32.

  Raises:
    ValueError: for a pattern that no layer matches, or two that one matches.
  """
  # Only kernels are adapted; norms and biases are not.
  flat = traverse_util.flatten_dict({n: params[n] for n in NETS if n in params})
  kernels = {path[:-1]: x for path, x in flat.items() if path[-1] == 'kernel'}
  factors = {}
  for path, target in assign(kernels, targets).items():
    *inputs, outputs = kernels[path].shape
    # Under nn.scan a kernel [in, out] has the axis of its stack before it.
    stack = inputs[:1] if len(inputs) % 2 == 0 else []
    # Uniform in +-1/sqrt(fan_in), like PEFT.
    uniform = nn.initializers.variance_scaling(
      1 / 3, 'fan_in', 'uniform', batch_axis=range(len(stack))
    )
    layer_key = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    shape = (*inputs, target.rank)
    factors[*path, 'a'] = uniform(layer_key, shape, jnp.float32)
    factors[*path, 'b'] = jnp.zeros((*stack, target.rank, outputs))
  return traverse_util.unflatten_dict(factors)


def assign(
  paths: Collection[Path], targets: Iterable[Target]
) -> dict[Path, Target]:
  """Returns the Target of each layer that is adapted."""
  assigned = {}
  for target in targets:
    matched = [path for path in paths if matches(target, path)]
    if not matched:
      names = ['/'.join(path) for path in paths]
      raise ValueError(describe_mismatch(target, names))
    for path in matched:
      if path in assigned:
        raise ValueError(
          f'config.lora.{assigned[path].name} and config.lora.{target.name} '
          f'both name the layer {"/".join(path)}: make one of their patterns '
          'narrower'
        )
      assigned[path] = target
  return assigned


def matches(target: Target, path: Path) -> bool:
  """Returns whether the target's pattern matches the whole path."""
  return re.fullmatch(target.layers, '/'.join(path)) is not None


def describe_mismatch(target: Target, names: Iterable[str]) -> str:
  """Returns an error text that names the layers most similar to a pattern."""
  by_ending = {name.rpartition('/')[2]: name for name in names}
  ending = target.layers.rpartition('/')[2]
  near = difflib.get_close_matches(ending, by_ending, 4, 0.0)
  near = [by_ending[ending] for ending in near]
  return (
    f'config.lora.{target.name}.layers is {target.layers!r}, which no layer '
    f'matches as a whole. Similar layers: {", ".join(near)}'
  )


def fold_scale(
  factors: dict[str, Any], targets: Iterable[Target]
) -> dict[str, Any]:
  """Multiplies each b by its target's alpha / rank, as `apply` requires."""
  flat = traverse_util.flatten_dict(factors)
  for path, x in flat.items():
    if path[-1] == 'b':
      # `assign` made sure that exactly one target matches.
      (target,) = (t for t in targets if matches(t, path[:-1]))
      flat[path] = x * (target.alpha / target.rank)
  return traverse_util.unflatten_dict(flat)


def apply(
  net: nn.Module,
  name: str,
  params: dict[str, Any],
  *args: Any,
  variables: dict[str, Any] | None = None,
  **kwargs: Any,
) -> Any:
  """Calls net.apply with params[name] and, if present, params['lora'][name].

  `variables` are further collections; args and kwargs are net.apply's.
  """
  variables = {'params': params[name]} | (variables or {})
  # Without factors there is no interceptor: the program is unchanged.
  factors = params.get('lora', {}).get(name)
  if not factors:
    return net.apply(variables, *args, **kwargs)
  with nn.intercept_methods(add_product):
    return net.apply(variables | {'lora': factors}, *args, **kwargs)


def add_product(
  method: Callable, args: tuple, kwargs: dict[str, Any], context: Any
) -> Any:
  """Intercepts a layer with factors: x W becomes x W + (x a) b."""
  layer, y = context.module, method(*args, **kwargs)
  if isinstance(layer, stored_kernels.StoredLayer):
    if layer.has_variable('lora', 'a'):
      raise ValueError(
        f'{layer.name} has low-rank factors, and its kernel is stored in 8 '
        'bits: leave weights_dtype out'
      )
    return y
  if not isinstance(layer, nn.Dense | nn.Conv):
    return y
  if not layer.has_variable('lora', 'a'):
    return y
  a, b = (layer.get_variable('lora', name) for name in 'ab')
  # a is a kernel of the layer's kind with r outputs; b applies to each pixel.
  down = layer.clone(
    features=a.shape[-1], use_bias=False, parent=None, name=None
  )
  h = down.apply({'params': {'kernel': a}}, *args)
  return y + h @ b.astype(h.dtype)
