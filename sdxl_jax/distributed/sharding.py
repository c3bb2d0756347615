"""Shards arrays: batches by row, parameters over fsdp and tensor."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# The axes that `tensor` splits: (end of a parameter's path, spec of its last
# axes). A pair of layers is split by columns, then by rows, so that each device
# computes its own heads or channels, and one sum at the end joins them
# (Shoeybi et al. 2019, Megatron-LM, section 3). Of a kernel's low-rank factors,
# b [r, out] is split by columns and a [in, r] by rows.
TABLE = (
  (r'(to_[qkv]|[qkv]_proj|fc1|net_0/proj)/(kernel|b)', (None, 'tensor')),
  (r'([qkv]_proj|fc1|net_0/proj)/bias', ('tensor',)),
  (r'(to_out_0|out_proj|fc2|net_2)/(kernel|a)', ('tensor', None)),
  (r'resnets_\d+/(conv1|time_emb_proj)/(kernel|b)', (None, 'tensor')),
  (r'resnets_\d+/(conv1|time_emb_proj)/bias', ('tensor',)),
  (r'resnets_\d+/norm2/(scale|bias)', ('tensor',)),
  (r'resnets_\d+/conv2/(kernel|a)', ('tensor', None)),
)
ROWS = PartitionSpec(('data', 'fsdp'))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of arrays of which each device has a copy."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding of a batch: rows over data and fsdp."""
  return NamedSharding(mesh, ROWS)


def partition(
  path: str,
  shape: tuple[int, ...],
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> PartitionSpec:
  """Returns the PartitionSpec of a parameter, and of its EMA and moments.

  `tensor` splits the axis in TABLE, `fsdp` the largest remaining axis that it
  divides. An axis that is not divisible is not split: such arrays are small. An
  optimizer's means over an axis have fewer axes, which `fsdp` alone splits.

  Args:
    path: keys, joined by '/'.
    shape: of the array.
    mesh: with axes fsdp and tensor.
  """

  def is_divisible(i, axis):
    size = mesh.shape[axis]
    return 1 < size <= shape[i] and shape[i] % size == 0

  # First tensor, by the table, then fsdp.
  axes = next((a for end, a in TABLE if re.search(f'{end}$', path)), ())
  if len(axes) > len(shape):
    axes = ()
  spec = [None] * (len(shape) - len(axes)) + list(axes)
  spec = [
    a if a is not None and is_divisible(i, a) else None
    for i, a in enumerate(spec)
  ]
  free = [
    i for i, a in enumerate(spec) if a is None and is_divisible(i, 'fsdp')
  ]
  if free:
    spec[max(free, key=lambda i: shape[i])] = 'fsdp'
  return PartitionSpec(*spec)


def tree_shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the tree of NamedShardings of a tree of parameters or shapes."""

  def sharding(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return NamedSharding(mesh, partition(name, x.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, tree)


def with_shardings(
  tree: Any, mesh: jax.sharding.Mesh, memory: str = 'device'
) -> Any:
  """Adds shardings to a tree of shapes.

  Args:
    tree: of arrays or jax.ShapeDtypeStruct.
    mesh: of the devices.
    memory: 'device', or 'pinned_host' for the memory of the host; see `fetch`.
  """

  def spec(x, sharding):
    sharding = sharding.with_memory_kind(memory)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(spec, tree, tree_shardings(tree, mesh))


def fetch(tree: Any) -> Any:
  """Copies arrays from the memory of the host to that of the devices."""

  def to_device(x):
    if x.sharding.memory_kind != 'pinned_host':
      return x
    return jax.device_put(x, x.sharding.with_memory_kind('device'))

  return jax.tree.map(to_device, tree)


def keep_rows(mesh: jax.sharding.Mesh, batch_size: int) -> Callable:
  """Makes an interceptor that keeps activations sharded by row.

  Without it the compiler may gather activations where it should gather
  parameters.

  Args:
    mesh: of the devices.
    batch_size: rows; arrays with another first axis are not constrained.

  Returns:
    an interceptor for flax.linen.intercept_methods. It constrains inputs and
    outputs of all modules, and so their gradients.
  """
  free = PartitionSpec.UNCONSTRAINED

  def constrain(x):
    is_array = isinstance(x, jax.Array)
    if not is_array or x.ndim < 2 or x.shape[0] != batch_size:
      return x
    # Rows are fixed; the compiler chooses the sharding of the other axes.
    spec = PartitionSpec(*ROWS, *[free] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  def interceptor(method, args, kwargs, context):
    del context
    args, kwargs = jax.tree.map(constrain, (args, kwargs))
    return jax.tree.map(constrain, method(*args, **kwargs))

  return interceptor


def local_rows(mesh: jax.sharding.Mesh, batch_size: int) -> list[int]:
  """Returns the rows of a global batch on this process's devices, ascending."""
  indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  spans = {index[0].indices(batch_size)[:2] for index in indices.values()}
  return [row for start, stop in sorted(spans) for row in range(start, stop)]


def put_batch(
  batch: dict[str, np.ndarray],
  mesh: jax.sharding.Mesh,
  spec: dict[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
  """Makes the global batch from the rows of each process.

  Args:
    batch: rows of this process, in the order of local_rows.
    mesh: of all devices.
    spec: shapes of the global batch.
  """

  def put(x, global_spec):
    size = global_spec.shape[0]
    # Where in `x` a global row lies.
    local = {row: i for i, row in enumerate(local_rows(mesh, size))}

    def shard(index):
      start, stop, _ = index[0].indices(size)
      return x[local[start] : local[start] + stop - start]

    return jax.make_array_from_callback(
      global_spec.shape, batch_sharding(mesh), shard
    )

  return jax.tree.map(put, batch, spec)
