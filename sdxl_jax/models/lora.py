"""Low-rank adaptation of the kernels of a net (Hu et al. 2021, LoRA).

W becomes W + alpha / r * a b, where a [in, r] and b [r, out] are trained in
place of W [in, out]; other kinds of such a difference are in `lora_kinds`. The
nets have no code for it: under `apply` each layer that has factors in the
collection 'lora' adds their product to its output.
"""

import dataclasses
import difflib
import re
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util
from jaxtyping import PRNGKeyArray

from sdxl_jax.models import lora_kinds, stored_kernels

NETS = ('unet', 'text_encoder', 'text_encoder_2')

LAYERS = nn.Dense | nn.Conv | stored_kernels.StoredLayer  # may have factors
Path = tuple[str, ...]  # of a layer in the tree {net: parameters}


@dataclasses.dataclass(frozen=True)
class Target:
  """Selects layers to adapt, with the rank and the scale of their factors."""

  name: str  # in the config
  layers: str  # pattern of whole paths, as unet/.*/attn[12]/to_[qkv]
  rank: int
  alpha: float  # the product of the factors is scaled by alpha / rank
  algo: str = 'lora'  # one of lora_kinds.ALGOS
  dora_wd: bool = False  # whether norms are trained besides (DoRA)
  factor: int = -1  # of lokr, see lora_kinds.split


def init(
  key: PRNGKeyArray, params: dict[str, Any], targets: Iterable[Target]
) -> dict[str, Any]:
  """Returns fresh factors, which change nothing.

  Args:
    key: jax key.
    params: {net: parameters}; without dora_wd, their shapes are enough.
    targets: layers to adapt.

  Returns:
    {net: {..., 'a', 'b'}}, float32; see lora_kinds.

  Raises:
    ValueError: for a pattern that no layer matches, or two that one matches.
  """
  # Only kernels are adapted; norms and biases are not.
  flat = traverse_util.flatten_dict({n: params[n] for n in NETS if n in params})
  kernels = {path[:-1]: x for path, x in flat.items() if path[-1] == 'kernel'}
  factors = {}
  for path, target in assign(kernels, targets).items():
    kernel = kernels[path]
    layer_key = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    of_layer = lora_kinds.init(
      layer_key, kernel.shape, target.algo, target.rank, target.factor
    )
    if target.dora_wd:
      scale = flat.get((*path, stored_kernels.SCALE))
      if scale is not None:
        kernel = stored_kernels.dequantize(kernel, scale)
      is_stacked = kernel.ndim % 2 == 1
      norms = lora_kinds.column_norms(kernel, is_stacked)
      of_layer[lora_kinds.MAGNITUDE] = norms
    factors |= {(*path, name): x for name, x in of_layer.items()}
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
  """Multiplies a factor of each layer by its scale, as `apply` requires."""
  flat = traverse_util.flatten_dict(factors)
  for path, x in flat.items():
    if path[-1] in lora_kinds.SCALED and (*path[:-1], 'w2') not in flat:
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
  """Intercepts a layer with factors: x W becomes x (W + D)."""
  layer, y = context.module, method(*args, **kwargs)
  if not isinstance(layer, LAYERS):
    return y
  factors = layer.variables.get('lora')
  if not factors:
    return y
  return lora_kinds.add(layer, factors, y, *args)
