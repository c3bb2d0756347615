"""Makes the changes of a layer from the tensors of a LoRA file."""

import math
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from sdxl_jax.weights.lora import deltas, lora_names, part_shapes
from sdxl_jax.weights.lora.part_shapes import Shape

# The tensors that each method needs, and those that it may have besides.
METHODS = {
  'LoRA': (('down', 'up'), ('mid', 'up_bias')),
  'LoHa': (lora_names.HADAMARD, ('hada_t1', 'hada_t2')),
  'LoKr': ((), lora_names.KRONECKER),
  'GLoRA': (lora_names.GENERALIZED, ()),
  'OFT': (('oft_blocks',), ('rescale',)),
  'a whole difference': (('diff',), ()),
}
MAGNITUDES = ('magnitude', 'magnitude_out')
BIASES = ('diff_b', 'up_bias')  # parts that change a bias
# Pairs of factors of LoKr that stand for one matrix.
PAIRS = {
  'lokr_w1': ('lokr_w1_a', 'lokr_w1_b'),
  'lokr_w2': ('lokr_w2_a', 'lokr_w2_b'),
}
# The numbers of axes of parts whose axes are counted.
CORES = ('mid', 'hada_t1', 'hada_t2', 'lokr_t2')
AXES = {part: (4,) for part in CORES} | {'oft_blocks': (3, 4)}
AXES |= {part: (2, 4) for part in ('lokr_w2', 'lokr_w2_b')}
AXES |= {f'lokr_{part}': (2,) for part in ('w1', 'w1_a', 'w1_b', 'w2_a')}


class Layer(NamedTuple):
  """The shapes of a layer of the base model."""

  weight: Shape
  bias: Shape | None = None


Layers = dict[tuple[str, str], Layer]  # by (net, published name)


class Misfit(NamedTuple):
  """The first part whose shape is not that which its layer needs."""

  part: str
  needed: str
  is_broken: bool = False  # whether it fits no layer, or no other part


def method_of(parts: dict[str, Shape]) -> str | None:
  """Returns the method of a layer's weight, or None: only its bias changes.

  Raises:
    ValueError: if parts are missing, or belong to two methods.
  """
  methods = [
    method
    for method, (needed, optional) in METHODS.items()
    if {*needed, *optional} & set(parts)
  ]
  if len(methods) > 1:
    raise ValueError(f'has parts of two methods, {" and ".join(methods)}')
  if not methods:
    if 'diff_b' not in parts or set(parts) & set(MAGNITUDES):
      given = ' and '.join(parts)
      raise ValueError(f'has only {given}: the file is incomplete')
    return None
  if methods[0] in ('OFT', 'GLoRA') and set(parts) & set(MAGNITUDES):
    raise ValueError(f'has parts of two methods, {methods[0]} and DoRA')
  needed, _ = METHODS[methods[0]]
  missing = [part for part in needed if part not in parts]
  if methods[0] == 'LoKr':
    missing = [
      whole
      for whole, pair in PAIRS.items()
      if whole not in parts and not set(pair) <= set(parts)
    ]
  if len({'hada_t1', 'hada_t2'} & set(parts)) == 1:
    missing = ['hada_t1' if 'hada_t2' in parts else 'hada_t2']
  if missing:
    raise ValueError(f'has no {missing[0]}: the file is incomplete')
  return methods[0]


def check_shapes(parts: dict[str, Shape], layer: Layer) -> Misfit | None:
  """Finds the first part that does not fit a layer; None: all fit.

  Args:
    parts: {part: shape}.
    layer: shapes of the base model. A matrix may be stored as a convolution of
      size one, and the other way round.
  """
  method = method_of(parts)
  for part, shape in parts.items():
    axes = AXES.get(part, (1, 2, 3, 4))
    if part != 'alpha' and len(shape) not in axes:
      return Misfit(part, f'of {" or ".join(map(str, axes))} axes', True)
  if method and method != 'a whole difference' and len(layer.weight) < 2:
    part = next(p for p in parts if p != 'alpha')
    return Misfit(part, f'that of a norm, which has no {method}')
  if method == 'LoKr':
    if misfit := check_kronecker(parts, layer.weight):
      return misfit
  ranks = {}
  for part, needed in needed_shapes(parts, layer).items():
    found = part_shapes.pad(parts[part], len(needed))
    if not part_shapes.is_fitting(found, needed):
      is_turned = len(found) == 2 and part_shapes.is_fitting(
        found[::-1], needed
      )
      return Misfit(part, part_shapes.describe(needed), is_turned)
    rank = {m for m, n in zip(found, needed) if n == 'r'}
    ranks[part] = rank
    if len(set.union(*ranks.values())) > 1:
      return Misfit(part, f'of the same rank as {next(iter(ranks))}', True)
  return None


def needed_shapes(
  parts: dict[str, Shape], layer: Layer
) -> dict[str, part_shapes.Needed]:
  """Returns {part: shape that a layer needs}; 'r' is the rank."""
  outputs, *rest = layer.weight
  inputs, *kernel = rest or [1]
  flat = math.prod(rest)
  needed = {
    'down': ('r', *rest),
    'up': (outputs, 'r'),
    'hada_w1_a': (outputs, 'r'),
    'hada_w2_a': (outputs, 'r'),
    'hada_w1_b': ('r', flat),
    'hada_w2_b': ('r', flat),
    'a1': (inputs, 'r'),
    'a2': ('r', inputs),
    'b1': (outputs, 'r'),
    'b2': ('r', *rest),
    'diff': layer.weight,
    'rescale': (outputs,),
    'magnitude': (outputs,),
    'magnitude_out': (outputs,),
  }
  if layer.bias:
    needed |= {part: layer.bias for part in BIASES}
  if 'mid' in parts:
    needed |= {'down': ('r', inputs), 'mid': ('r', 'r', *kernel)}
  if 'hada_t1' in parts:
    for i in '12':
      needed |= {f'hada_w{i}_a': ('r', outputs), f'hada_w{i}_b': ('r', inputs)}
      needed[f'hada_t{i}'] = ('r', 'r', *kernel)
  # Convolutions may be stored with their shape where they are flat, too.
  for part in ('hada_w1_b', 'hada_w2_b'):
    if len(parts.get(part, ())) > 2 and 'hada_t1' not in parts:
      needed[part] = ('r', *rest)
  # A norm of each input, and PEFT's of convolutions, which is transposed.
  if part_shapes.pad(parts.get('magnitude', ()), 2)[:1] == (1,):
    needed['magnitude'] = (1, inputs)
  if part_shapes.pad(parts.get('magnitude_out', ()), 2)[:1] == (1,):
    needed['magnitude_out'] = (1, outputs)
  if 'oft_blocks' in parts:
    needed['oft_blocks'] = part_shapes.blocks_shape(
      parts['oft_blocks'], outputs
    )
  return {part: needed[part] for part in parts if part in needed}


def check_kronecker(parts: dict[str, Shape], weight: Shape) -> Misfit | None:
  """Checks that the sizes of two matrices multiply to those of a weight."""
  sizes, names = [], []
  for whole, (a, b) in PAIRS.items():
    if whole in parts:
      rows, *columns = parts[whole]
    elif whole == 'lokr_w2' and 'lokr_t2' in parts:
      (rank, rows), (other, *columns) = parts[a], parts[b]
      columns = [*columns, *parts['lokr_t2'][2:]]
      if (rank, other) != parts['lokr_t2'][:2]:
        return Misfit('lokr_t2', f'({rank}, {other}, ...)', True)
    else:
      (rows, rank), (other, *columns) = parts[a], parts[b]
      if rank != other:
        return Misfit(b, f'({rank}, ...)', True)
    sizes.append((rows, math.prod(columns)))
    names.append(whole if whole in parts else b)
  (a, b), (c, d) = sizes
  if (a * c, b * d) != (weight[0], math.prod(weight[1:])):
    return Misfit(names[1], f'a product of {weight}, not {(a * c, b * d)}')
  # The first matrix has no kernel; the second has that of the weight, or is
  # flat.
  if weight[1] % b:
    return Misfit(names[0], f'a matrix whose columns divide {weight[1]}')
  flat = part_shapes.pad(tuple(columns), 1)
  kernel = part_shapes.pad(flat, len(weight) - 1)[1:]
  if len(flat) > 1 and kernel != weight[2:]:
    return Misfit(names[1], f'of the kernel {weight[2:]}, not {kernel}')
  return None


def rank_of(parts: dict[str, Shape]) -> int | None:
  """Returns the rank by which alpha is divided; None: all is stored whole."""
  for part in ('down', 'hada_w1_b', 'lokr_w2_b', 'lokr_w1_b', 'b2'):
    if parts.get(part):
      return parts[part][0]
  return None


def is_scaled(parts: Collection[str]) -> bool:
  """Whether a layer's change is scaled by alpha / rank."""
  return bool({'up', 'hada_w1_a', 'b1'} & set(parts)) or any(
    part.startswith('lokr_') for part in parts
  )


def scale_of(parts: dict[str, np.ndarray], rank: int | None) -> float:
  """Returns alpha / rank; 1 without alpha, or where all is stored whole."""
  if 'alpha' not in parts or rank is None:
    return 1.0
  return float(parts['alpha']) / rank


def make_deltas(
  parts: dict[str, np.ndarray], scale: float, layer: Layer
) -> dict[str, deltas.Delta]:
  """Makes the changes of a layer.

  Args:
    parts: {part: tensor}; their shapes fit the layer.
    scale: see `scale_of`.
    layer: shapes of the base model. If it has no bias, parts that change one
      are left out.

  Returns:
    {'weight' or 'bias': change}.
  """
  changes, method = {}, method_of({p: x.shape for p, x in parts.items()})
  if method == 'OFT':
    # alpha is what its norm is kept to, per output.
    alpha = parts.get('alpha')
    limit = 0.0 if alpha is None else float(alpha) * layer.weight[0]
    changes['weight'] = deltas.Rotation(
      parts['oft_blocks'], limit, parts.get('rescale')
    )
  elif method == 'GLoRA':
    four = [parts[part] for part in lora_names.GENERALIZED]
    changes['weight'] = deltas.Generalized(*four, scale)
  elif method:
    changes['weight'] = make_additive(method, parts, scale)
  for part in MAGNITUDES:
    if part in parts and 'weight' in changes:
      magnitude = shape_magnitude(part, parts[part], len(layer.weight))
      changes['weight'] = deltas.Decomposed(changes['weight'], magnitude)
  for part in BIASES:
    if part in parts and layer.bias:
      factor = scale if part == 'up_bias' else 1.0
      changes['bias'] = deltas.Difference(parts[part], factor)
  return changes


def make_additive(
  method: str, parts: dict[str, np.ndarray], scale: float
) -> deltas.Additive:
  """Makes the change of a weight by a method that does not depend on it."""
  if method == 'a whole difference':
    return deltas.Difference(parts['diff'])
  if method == 'LoHa':
    first, second = (
      deltas.Half(
        None,
        parts[f'hada_w{i}_a'],
        parts[f'hada_w{i}_b'],
        parts.get(f'hada_t{i}'),
      )
      for i in '12'
    )
    return deltas.Hadamard(first, second, scale)
  if method == 'LoKr':
    first, second = (
      deltas.Half(
        parts.get(whole),
        parts.get(a),
        parts.get(b),
        parts.get('lokr_t2') if whole == 'lokr_w2' else None,
      )
      for whole, (a, b) in PAIRS.items()
    )
    return deltas.Kronecker(first, second, scale)
  if 'mid' in parts:
    return deltas.CoreFactors(parts['down'], parts['mid'], parts['up'], scale)
  return deltas.Factors(parts['down'], parts['up'], parts.get('alpha'))


def shape_magnitude(part: str, values: np.ndarray, ndim: int) -> np.ndarray:
  """Returns a magnitude as [out, 1, ...] or [1, in, ...]."""
  shape = part_shapes.pad(values.shape, 2)
  if shape[0] == 1 and part == 'magnitude':
    return values.reshape(1, -1, *[1] * (ndim - 2))
  return values.reshape(-1, *[1] * (ndim - 1))
