"""Muon: the momentum of a kernel, with all its singular values near 1.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et
al. 2025 (arXiv 2502.16982, section 2.2), by which updates are about as large as
those of AdamW: one learning rate fits both. What is no kernel, as biases, norms
and tables of tokens, and the UNet's first and last layer, is trained by AdamW.

optax's has matrices only; here a kernel of a convolution is the matrix of all
its inputs by its outputs, and a stack of kernels is a matrix for each block.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

MOMENTUM = 0.95
STEPS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
EPS = 1e-7
RMS = 0.2  # of AdamW's usual updates
KERNELS = 'kernel', 'a', 'b'  # names of matrices, low-rank factors too
ENDS = 'conv_in', 'conv_out'


class MuonState(NamedTuple):
  """State of `scale_by_muon`."""

  count: jax.Array  # int32 [], updates so far
  mu: Any  # the momentum, of the parameters' shapes


def labels(params: Any) -> Any:
  """Returns the tree of 'muon', or 'adam' for what is no inner kernel."""

  def label(path, x):
    names = [getattr(key, 'key', None) for key in path]
    is_kernel = names[-1] in KERNELS and x.ndim >= 2
    return 'muon' if is_kernel and not set(ENDS) & set(names) else 'adam'

  return jax.tree_util.tree_map_with_path(label, params)


def scale_by_muon() -> optax.GradientTransformation:
  """Replaces gradients by their orthogonalised Nesterov momentum."""

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return MuonState(jnp.zeros([], jnp.int32), zeros)

  def update(updates, state, params=None):
    del params
    mu = jax.tree.map(
      lambda m, g: MOMENTUM * m + (1 - MOMENTUM) * g, state.mu, updates
    )
    updates = jax.tree.map(
      lambda m, g: orthogonalize(MOMENTUM * m + (1 - MOMENTUM) * g), mu, updates
    )
    return updates, MuonState(optax.safe_increment(state.count), mu)

  return optax.GradientTransformation(init, update)


def orthogonalize(x: Float[Array, '*dims']) -> Float[Array, '*dims']:
  """Brings the singular values of a kernel near 1, then scales it.

  Args:
    x: of a dense layer [in, out], a stack of them [n, in, out], or a
      convolution [height, width, in, out].

  Returns:
    The same shape, with a root mean square of about RMS.
  """
  is_stack = x.ndim == 3
  matrix = x if is_stack else x.reshape(-1, x.shape[-1])
  rows, columns = matrix.shape[-2:]
  # The products are of the smaller side.
  if rows > columns:
    matrix = matrix.mT
  norm = jnp.sqrt(jnp.square(matrix).sum((-2, -1), keepdims=True))
  matrix = matrix / (norm + EPS)
  matrix = jax.lax.fori_loop(0, STEPS, lambda _, m: iterate(m), matrix)
  if rows > columns:
    matrix = matrix.mT
  return (RMS * max(rows, columns) ** 0.5 * matrix).reshape(x.shape)


def iterate(x: Float[Array, '*n r c']) -> Float[Array, '*n r c']:
  """Applies a quintic polynomial to the singular values (Newton-Schulz)."""
  a, b, c = COEFFICIENTS
  square = x @ x.mT
  return a * x + (b * square + c * square @ square) @ x
