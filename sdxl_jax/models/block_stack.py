"""A stack of equal blocks as one loop, with a backward pass of its own.

JAX's gradient of a scan fills the buffers in which it stacks residuals and
gradients with zeros, before each is overwritten. Here they are allocated only,
on TPUs and GPUs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Num

X = Num[ArrayLike, '*dims']
# Maps (parameters, x, shared) to the next x.
Block = Callable[[Any, Any, Any], Any]


def apply(
  function: Block, params: Any, x: X, shared: Any, unroll: int = 1
) -> Num[Array, '*dims']:
  """Applies one block after another: x = function(params[i], x, shared).

  What the backward pass needs of a block is stored, its input too; a
  rematerialisation policy of the block decides how much that is. There is no
  forward mode (jax.jvp).

  Args:
    function: a block, whose results have the shape and type of x.
    params: tree of arrays, stacked along the first axis.
    x: input of the first block.
    shared: tree of arrays, the same for all blocks.
    unroll: blocks that are compiled for each round of the loop.

  Returns:
    The result of the last block.
  """
  # Traced once, here: JAX asks for the backward pass after this call, when what
  # surrounds it, such as Flax's interceptors, is gone.
  traced, constants = jax.closure_convert(function, at(params, 0), x, shared)

  def block(params, x, shared):
    return traced(params, x, shared[0], *shared[1])

  return stack(block, unroll, params, x, (shared, constants))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def stack(
  block: Block, unroll: int, params: Any, x: X, shared: Any
) -> Num[Array, '*dims']:
  """Applies the blocks; see apply."""

  def body(i, x):
    return block(at(params, i), x, shared)

  return repeat(depth_of(params), unroll, body, x)


def forward(
  block: Block, unroll: int, params: Any, x: X, shared: Any
) -> tuple[Num[Array, '*dims'], tuple]:
  """Applies the blocks, and returns what `backward` needs of them as well."""

  # Under jit all arguments are tracers, by which `linearize` knows them.
  @jax.jit
  def keep(params, x, shared):
    x_next, own, _ = linearize(block, params, x, shared)
    return x_next, [x, *own]

  def body(i, carry):
    x, buffers = carry
    x, kept = keep(at(params, i), x, shared)
    return x, put(buffers, i, kept)

  depth = depth_of(params)
  _, shapes = jax.eval_shape(keep, at(params, 0), x, shared)
  carry = x, allocate(depth, shapes)
  out, buffers = repeat(depth, unroll, body, carry)
  return out, (params, shared, buffers)


def backward(
  block: Block, unroll: int, residuals: tuple, gradient: X
) -> tuple[Any, Num[Array, '*dims'], Any]:
  """Returns the gradients by params, x and shared."""
  params, shared, buffers = residuals
  depth = depth_of(params)

  @jax.jit
  def pull(params, kept, shared, gradient):
    # The block is linearized again, and only its residuals are replaced: the
    # compiler drops what computes those of this time.
    x, *own = kept
    _, _, make_vjp = linearize(block, params, x, shared)
    return make_vjp(own)(gradient)

  def body(j, carry):
    gradient, by_params, by_shared = carry
    i = depth - 1 - j
    by_block, gradient, more = pull(
      at(params, i), at(buffers, i), shared, gradient
    )
    by_shared = jax.tree.map(jnp.add, by_shared, more)
    by_block = [x for x, f in zip(jax.tree.leaves(by_block), is_float) if f]
    return gradient, put(by_params, i, by_block), by_shared

  # Of integers, as kernels of 8 bits, there is no gradient.
  leaves, tree = jax.tree.flatten(params)
  is_float = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
  floats = [x for x, f in zip(leaves, is_float) if f]
  by_params = allocate(depth, at(floats, 0))
  by_shared = jax.tree.map(jnp.zeros_like, shared)
  gradient, by_params, by_shared = repeat(
    depth, unroll, body, (gradient, by_params, by_shared)
  )
  found = iter(by_params)
  by_params = [next(found) if f else None for f in is_float]
  return jax.tree.unflatten(tree, by_params), gradient, by_shared


stack.defvjp(forward, backward)


def repeat(count: int, unroll: int, body: Callable, carry: Any) -> Any:
  """Returns carry = body(i, carry), from i = 0 to count - 1."""
  return jax.lax.fori_loop(0, count, body, carry, unroll=unroll)


def depth_of(params: Any) -> int:
  """Returns the number of blocks."""
  return jax.tree.leaves(params)[0].shape[0]


def linearize(
  block: Block, params: Any, x: Num[Array, '*dims'], shared: Any
) -> tuple[Num[Array, '*dims'], list[Array], Callable]:
  """Linearizes one block.

  Returns:
    (its result; residuals that are not among its arguments; a function that
    makes the vjp from other values of these).
  """
  out, vjp = jax.vjp(block, params, x, shared)
  leaves, tree = jax.tree.flatten(vjp)
  given = {id(leaf) for leaf in jax.tree.leaves((params, x, shared))}
  own = [leaf for leaf in leaves if id(leaf) not in given]

  def make_vjp(values):
    values = iter(values)
    replaced = [x if id(x) in given else next(values) for x in leaves]
    return jax.tree.unflatten(tree, replaced)

  return out, own, make_vjp


def at(tree: Any, i: Array | int) -> Any:
  """Returns the arrays of a stacked tree at one place."""
  return jax.tree.map(
    lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree
  )


def put(tree: Any, i: Array, values: Any) -> Any:
  """Returns a stacked tree with other arrays at one place."""

  def update(x, value):
    return jax.lax.dynamic_update_index_in_dim(x, value, i, 0)

  return jax.tree.map(update, tree, values)


def allocate(depth: int, shapes: Any) -> Any:
  """Allocates a stacked tree, whose values are undefined until they are put."""
  return jax.tree.map(
    lambda x: jax.lax.empty((depth, *x.shape), x.dtype), shapes
  )
