"""Changes of a weight W, as LoRA files of several methods have them.

Each delta defines a changed weight W'. With strength s, W becomes
W + s (W' - W): nothing for s = 0, W' for s = 1. All arithmetic is in float32,
on weights in the published layout, [out, in] or [out, in, kh, kw].
"""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

EPSILON = np.finfo(np.float32).eps  # added to norms, as LyCORIS and ComfyUI do


class Delta(Protocol):
  """A change of one weight."""

  def merged(self, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns the weight, float32, changed with a strength."""


class Additive(Delta, Protocol):
  """A change that does not depend on the weight: it adds W' - W."""

  def product(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns W' - W, float32, of a shape."""

  def merged(self, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns W + s (W' - W)."""
    return weight + np.float32(strength) * self.product(weight.shape)


class Factors(NamedTuple):
  """The published factors of one layer, of any floating-point dtype (LoRA)."""

  down: np.ndarray  # [r, in] or [r, in, kh, kw]
  up: np.ndarray  # [out, r] or [out, r, 1, 1]
  alpha: np.ndarray | None = None  # []; None: the rank

  @property
  def scale(self) -> float:
    """alpha / r, by which the product is scaled."""
    return 1.0 if self.alpha is None else float(self.alpha) / len(self.down)

  def product(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns alpha / r * up @ down, of a shape."""
    return np.float32(self.scale) * multiply(self.up, self.down).reshape(shape)

  def merged(self, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns W + s * alpha / r * up @ down."""
    product = multiply(self.up, self.down).reshape(weight.shape)
    return weight + np.float32(strength * self.scale) * product


def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Multiplies a [m, r, ...] and b [r, n, ...] as matrices, in float32."""
  a, b = np.float32(a), np.float32(b)
  return a.reshape(len(a), -1) @ b.reshape(len(b), -1)


def multiply_core(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Multiplies core [r, r, kh, kw], a [r, m] and b [r, n] to [m, n, kh, kw]."""
  a, b = (np.float32(x).reshape(len(x), -1) for x in (a, b))
  half = np.tensordot(a, np.float32(core), ((0,), (0,)))  # [m, r, kh, kw]
  return np.einsum('mr...,rn->mn...', half, b, optimize=True)


@dataclasses.dataclass(frozen=True)
class Difference(Additive):
  """A whole difference, of a weight, a bias or a norm's scale."""

  values: np.ndarray
  scale: float = 1.0

  def product(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the difference."""
    return np.float32(self.scale) * np.float32(self.values).reshape(shape)


@dataclasses.dataclass(frozen=True)
class CoreFactors(Additive):
  """Factors of a convolution with a core between them (Tucker, LoCon).

  W' - W = scale * sum_ij mid[i, j] up[:, i] down[j, :].
  """

  down: np.ndarray  # [r, in, 1, 1]
  mid: np.ndarray  # [r, r, kh, kw]
  up: np.ndarray  # [out, r, 1, 1]
  scale: float

  def product(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns W' - W."""
    up = self.up.reshape(len(self.up), -1).T
    return np.float32(self.scale) * multiply_core(self.mid, up, self.down)


class Half(NamedTuple):
  """One of the two factors of a Hadamard or Kronecker product.

  Stored whole, as a @ b, or as two factors and a core.
  """

  whole: np.ndarray | None = None
  a: np.ndarray | None = None  # [m, r]; with a core [r, m]
  b: np.ndarray | None = None  # [r, n]
  core: np.ndarray | None = None  # [r, r, kh, kw]

  def value(self) -> np.ndarray:
    """Returns the half, float32."""
    if self.core is not None:
      return multiply_core(self.core, self.a, self.b)
    if self.whole is not None:
      return np.float32(self.whole)
    return multiply(self.a, self.b)


@dataclasses.dataclass(frozen=True)
class Hadamard(Additive):
  """An elementwise product of two low-rank matrices (LoHa, FedPara)."""

  first: Half
  second: Half
  scale: float

  def product(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns scale * first * second."""
    product = self.first.value() * self.second.value()
    return np.float32(self.scale) * product.reshape(shape)


@dataclasses.dataclass(frozen=True)
class Kronecker(Additive):
  """A Kronecker product of a small and a large matrix (LoKr)."""

  first: Half
  second: Half
  scale: float

  def product(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns scale * kron(first, second)."""
    first, second = self.first.value(), self.second.value()
    rows, columns = first.reshape(len(first), -1).shape
    second = second.reshape(len(second), shape[1] // columns, *shape[2:])
    first = first.reshape(rows, columns, *[1] * (len(shape) - 2))
    return np.float32(self.scale) * np.kron(first, second).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Decomposed:
  """A weight whose norms are set after another change (DoRA, arXiv:2402.09353).

  W' = m (W + D) / |W + D|, eq. 5, with the norm of each output or each input.
  """

  direction: Additive
  magnitude: np.ndarray  # m, [out, 1, ...] or [1, in, ...]

  def merged(self, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns W + s (W' - W)."""
    total = weight + self.direction.product(weight.shape)
    kept = 0 if len(self.magnitude) == len(weight) else 1
    axes = tuple(axis for axis in range(total.ndim) if axis != kept)
    norm = np.sqrt(np.square(total).sum(axes, keepdims=True)) + EPSILON
    changed = total * (np.float32(self.magnitude) / norm)
    return weight + np.float32(strength) * (changed - weight)


@dataclasses.dataclass(frozen=True)
class Generalized:
  """Low-rank changes of inputs and outputs (GLoRA, arXiv:2306.07967).

  W' = W + scale (W A + B), with A = a1 a2 and B = b1 b2, as LyCORIS has them.
  """

  a1: np.ndarray  # [in, r] or [in, r, 1, 1]
  a2: np.ndarray  # [r, in] or [r, in, 1, 1]
  b1: np.ndarray  # [out, r] or [out, r, 1, 1]
  b2: np.ndarray  # [r, in] or [r, in, kh, kw]
  scale: float

  def merged(self, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns W + s (W' - W)."""
    # The inputs are the second axis, before those of a kernel.
    by_input = weight.reshape(*weight.shape[:2], -1)
    a1, a2 = (np.float32(x).reshape(len(x), -1) for x in (self.a1, self.a2))
    turned = np.einsum('oik,ir,rj->ojk', by_input, a1, a2, optimize=True)
    change = multiply(self.b1, self.b2).reshape(weight.shape)
    change = change + turned.reshape(weight.shape)
    return weight + np.float32(strength * self.scale) * change


@dataclasses.dataclass(frozen=True)
class Rotation:
  """Rotations of blocks of outputs (OFT, arXiv:2306.07280; BOFT, 2311.06243).

  A block is Q; R = (1 + Q - Q^T) (1 - Q + Q^T)^-1, the Cayley transform. In OFT
  the blocks follow one another: W' = R^T W. In BOFT each of several stages
  rotates other groups of outputs, those of a butterfly: W' = R_m ... R_1 W.
  """

  blocks: np.ndarray  # [n, b, b]; of BOFT [m, n, b, b]
  constraint: float  # of the norm of Q - Q^T; 0: none
  rescale: np.ndarray | None = None  # [out, 1, ...], of the outputs

  def merged(self, weight: np.ndarray, strength: float) -> np.ndarray:
    """Returns W + s (W' - W); of BOFT, s interpolates each stage."""
    rotations = self.rotations()
    rows = weight.reshape(len(weight), -1)
    if rotations.ndim == 3:
      identity = np.eye(rotations.shape[-1], dtype=np.float32)
      turned = rotate(rotations.swapaxes(1, 2) - identity, rows)
      changed = rows + turned
    else:
      changed, strength = butterfly(rotations, rows, strength), 1.0
    if self.rescale is not None:
      changed = np.float32(self.rescale).reshape(-1, 1) * changed
    changed = changed.reshape(weight.shape)
    return weight + np.float32(strength) * (changed - weight)

  def rotations(self) -> np.ndarray:
    """Returns R of all blocks, float32."""
    blocks = np.asarray(self.blocks).astype(np.float64)
    skew = blocks - blocks.swapaxes(-1, -2)
    norm = np.linalg.norm(skew)
    if 0 < self.constraint < norm:
      skew = skew * (self.constraint / norm)
    identity = np.eye(blocks.shape[-1])
    return np.float32((identity + skew) @ np.linalg.inv(identity - skew))


def rotate(matrices: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """Multiplies consecutive groups of rows [out, n] by matrices [k, b, b]."""
  groups = rows.reshape(*matrices.shape[:2], -1)
  return (matrices @ groups).reshape(rows.shape)


def butterfly(
  rotations: np.ndarray, rows: np.ndarray, strength: float
) -> np.ndarray:
  """Rotates rows [out, n] in stages: rotations [m, k, b, b]."""
  size = rotations.shape[-1]
  identity = np.eye(size, dtype=np.float32)
  for stage, matrices in enumerate(rotations):
    matrices = np.float32(strength) * (matrices - identity) + identity
    # Rows that are 2^stage b / 2 apart become neighbours.
    distance = 2**stage * (size // 2)
    paired = rows.reshape(-1, 2, distance, rows.shape[1]).swapaxes(1, 2)
    turned = rotate(matrices, paired.reshape(rows.shape))
    turned = turned.reshape(-1, distance, 2, rows.shape[1]).swapaxes(1, 2)
    rows = turned.reshape(rows.shape)
  return rows
