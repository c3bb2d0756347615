"""Makes PEFT's adapter_config.json for the changes of one net."""

import collections
from typing import Any

from sdxl_jax.models import lora_kinds
from sdxl_jax.weights.lora import deltas, merge, published_parts

Layers = dict[str, deltas.Delta]  # by published name
Shapes = dict[str, tuple[int, ...]]


def make(lora: merge.Lora, shapes: Shapes) -> dict[str, Any]:
  """Returns adapter_config.json for changes that PEFT has as one adapter.

  Args:
    lora: the changes.
    shapes: {published layer: shape of its weight} of the net.

  Raises:
    ValueError: if PEFT has no settings for them.
  """
  layers = {
    name.removesuffix('.weight'): delta
    for (_, name), delta in lora.changes().items()
  }
  kinds = {published_parts.kind_of(delta) for delta in layers.values()}
  if len(kinds) > 1:
    raise ValueError(
      f'PEFT keeps one kind in a file, and these changes are {sorted(kinds)}: '
      'choose the dialect kohya'
    )
  (kind,) = kinds
  ranks = {name: rank_of(delta) for name, delta in layers.items()}
  scaled = {
    name: published_parts.scale_of(delta) * ranks[name]
    for name, delta in layers.items()
  }
  rank, alpha = most_common(ranks), most_common(scaled)
  base = kind.removesuffix(published_parts.DORA)
  config = {
    'peft_type': base.upper(),
    'r': rank,
    'lora_alpha' if base == 'LoRA' else 'alpha': alpha,
    'rank_pattern': {n: r for n, r in ranks.items() if r != rank},
    'alpha_pattern': {n: a for n, a in scaled.items() if a != alpha},
    'target_modules': list(ranks),
  }
  if base == 'LoRA':
    config |= {'lora_dropout': 0.0, 'bias': 'none'}
    return config | ({'use_dora': True} if base != kind else {})
  config |= {'rank_dropout': 0.0, 'module_dropout': 0.0}
  config['use_effective_conv2d'] = False
  if base == 'LoKr':
    config |= settings_of_lokr(layers, shapes)
  return config


def rank_of(delta: deltas.Delta) -> int:
  """Returns the rank of a layer; of LoKr in whole matrices, one that is so."""
  rank = published_parts.rank_of(delta)
  if rank is None:
    rank = max(delta.second.whole.shape[:2])
  return rank


def settings_of_lokr(layers: Layers, shapes: Shapes) -> dict[str, Any]:
  """Returns what PEFT finds the sizes of the two matrices by.

  Args:
    layers: with a change by LoKr each.
    shapes: {layer: shape of its weight}.

  Raises:
    ValueError: if no factor splits all layers as they are.
  """
  # (size, rows or columns of the first matrix) of outputs and inputs.
  pairs = set()
  for name, delta in layers.items():
    first = delta.first
    if first.whole is not None:
      rows, columns = first.whole.shape[:2]
    else:
      rows, columns = len(first.a), first.b.shape[1]
    outputs, inputs, *_ = shapes[name]
    pairs |= {(outputs, rows), (inputs, columns)}

  def splits(factor):
    return all(first_size(size, factor) == m for size, m in pairs)

  candidates = [-1, *sorted({m for _, m in pairs})]
  factor = next(filter(splits, candidates), None)
  if factor is None:
    raise ValueError(
      'PEFT splits all layers of LoKr by one factor, and these are split by '
      'several: choose the dialect kohya'
    )
  is_decomposed = any(delta.first.a is not None for delta in layers.values())
  return {'decompose_factor': factor, 'decompose_both': is_decomposed}


def first_size(size: int, factor: int) -> int:
  """Returns the part of a size that the first matrix gets in PEFT.

  A factor that divides the size is that part, also where it is the larger one.
  """
  if factor > 0 and size % factor == 0:
    return factor
  return lora_kinds.split(size, factor)[0]


def most_common(values: dict[str, Any]) -> Any:
  """Returns the value that most layers have."""
  return collections.Counter(values.values()).most_common(1)[0][0]
