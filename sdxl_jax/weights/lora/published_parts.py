"""Takes changes of weights apart into the tensors that files have of them."""

from typing import Any

import numpy as np

from sdxl_jax.weights.lora import deltas, lora_names

Parts = dict[str, np.ndarray]  # by lora_names.PUBLISHED_PARTS
WHOLE = 'whole differences'
DORA = ' with magnitudes (DoRA)'
CORE = ' with a core'
KINDS = {
  deltas.Factors: 'LoRA',
  deltas.CoreFactors: f'LoRA{CORE}',
  deltas.Hadamard: 'LoHa',
  deltas.Kronecker: 'LoKr',
  deltas.Generalized: 'GLoRA',
  deltas.Difference: WHOLE,
}


def kind_of(delta: deltas.Delta) -> str:
  """Names the kind of a change, as 'LoHa' or 'LoHa with a core'."""
  if isinstance(delta, deltas.Decomposed):
    return kind_of(delta.direction) + DORA
  if isinstance(delta, deltas.Rotation):
    return 'OFT' if delta.blocks.ndim == 3 else 'BOFT'
  has_core = any(half.core is not None for half in halves_of(delta))
  return KINDS[type(delta)] + CORE * has_core


def halves_of(delta: deltas.Delta) -> list[deltas.Half]:
  """Returns the two factors of a Hadamard or Kronecker product, else []."""
  if isinstance(delta, deltas.Hadamard | deltas.Kronecker):
    return [delta.first, delta.second]
  return []


def rank_of(delta: deltas.Delta) -> int | None:
  """Returns the rank of a change; None: all of it is stored whole."""
  if isinstance(delta, deltas.Decomposed):
    return rank_of(delta.direction)
  if isinstance(delta, deltas.Factors | deltas.CoreFactors):
    return len(delta.down)
  if isinstance(delta, deltas.Generalized):
    return len(delta.b2)
  ranks = [len(h.b) for h in halves_of(delta) if h.b is not None]
  return ranks[-1] if ranks else None


def scale_of(delta: deltas.Delta) -> float:
  """Returns alpha / rank of a change that has them; 1: it has none."""
  if isinstance(delta, deltas.Decomposed):
    return scale_of(delta.direction)
  return getattr(delta, 'scale', 1.0)


def parts_of(delta: deltas.Delta) -> Parts:
  """Returns {part: tensor} of the change of a weight.

  Whatever a change reads from a file comes back as it was, alpha included.
  """
  if isinstance(delta, deltas.Decomposed):
    return parts_of(delta.direction) | {'magnitude': delta.magnitude}
  if isinstance(delta, deltas.Factors):
    parts = {'down': delta.down, 'up': delta.up}
    return parts if delta.alpha is None else parts | {'alpha': delta.alpha}
  if isinstance(delta, deltas.CoreFactors):
    parts = {'down': delta.down, 'up': delta.up, 'mid': delta.mid}
    return with_alpha(parts, delta.scale * len(delta.down))
  if isinstance(delta, deltas.Rotation):
    *_, count, size, _ = delta.blocks.shape
    parts = {'oft_blocks': delta.blocks}
    if delta.rescale is not None:
      parts['rescale'] = delta.rescale
    return with_alpha(parts, delta.constraint / (count * size))
  if isinstance(delta, deltas.Generalized):
    parts = {part: getattr(delta, part) for part in lora_names.GENERALIZED}
    return with_alpha(parts, delta.scale * len(delta.b2))
  if isinstance(delta, deltas.Difference):
    return {'diff': whole(delta)}
  return parts_of_product(delta)


def parts_of_product(delta: deltas.Hadamard | deltas.Kronecker) -> Parts:
  """Returns {part: tensor} of LoHa or LoKr."""
  name = 'hada' if isinstance(delta, deltas.Hadamard) else 'lokr'
  parts = {}
  for i, half in enumerate(halves_of(delta), 1):
    core = f'{name}_t{i}'
    ends = f'{name}_w{i}', f'{name}_w{i}_a', f'{name}_w{i}_b', core
    fields = half.whole, half.a, half.b, half.core
    parts |= {end: x for end, x in zip(ends, fields) if x is not None}
  if rank := rank_of(delta):
    return with_alpha(parts, delta.scale * rank)
  # Without a rank, the alpha of a file is of no importance.
  if delta.scale != 1:
    w1 = parts['lokr_w1']
    parts['lokr_w1'] = (delta.scale * np.float32(w1)).astype(w1.dtype)
  return with_alpha(parts, 1.0)


def whole(delta: deltas.Difference) -> np.ndarray:
  """Returns a difference with its scale multiplied in."""
  if delta.scale == 1:
    return np.asarray(delta.values)
  values = np.float32(delta.scale) * np.float32(delta.values)
  return values.astype(delta.values.dtype)


def with_alpha(parts: Parts, alpha: float) -> Parts:
  """Adds an alpha, in the type of the other parts if they have its digits."""
  dtype = next(iter(parts.values())).dtype
  short = np.asarray(alpha, np.float32).astype(dtype)
  if float(short) != float(np.float32(alpha)):
    short = np.asarray(alpha, np.float32)
  return parts | {'alpha': short}


def named_part(part: str, leaf: str, ndim: int) -> str:
  """Returns the part of a change of a weight, a bias or a norm.

  Args:
    part: as of a weight.
    leaf: 'weight' or 'bias'.
    ndim: axes of the weight of the layer; a norm has one.
  """
  if ndim == 1:
    return 'w_norm' if leaf == 'weight' else 'b_norm'
  return 'diff_b' if leaf == 'bias' else part


def shape_for_peft(part: str, array: np.ndarray) -> Any:
  """Returns a part in the shape that PEFT has it in."""
  if part != 'magnitude':
    return array
  return array.reshape(-1 if array.ndim == 2 else (1, -1, 1, 1))


def is_of_inputs(delta: deltas.Delta) -> bool:
  """Whether the magnitudes of DoRA are those of the inputs of a layer."""
  if not isinstance(delta, deltas.Decomposed):
    return False
  return delta.magnitude.shape[0] == 1 < delta.magnitude.size


def suffix(key_format: str, net: str, part: str) -> str:
  """Returns the end of the name of a part, in a key format."""
  if part in lora_names.PARTS:
    return lora_names.key_suffix(key_format, net, part)
  if part in lora_names.GENERALIZED:
    return f'.{part}.weight'
  if part == 'mid':
    return '.lora_mid.weight'
  if part == 'magnitude':
    is_kohya = key_format.startswith('kohya')
    return '.dora_scale' if is_kohya else '.lora_magnitude_vector'
  return f'.{part}'
