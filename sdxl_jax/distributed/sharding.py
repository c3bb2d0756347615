"""Where each array lives: batches by row, parameters over fsdp and tensor."""

import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

# What the mesh axis `tensor` splits: (end of a parameter's path, its last
# axes). A pair of layers is split by columns, then by rows, so that each device
# works on its own heads or channels and one sum at the end joins them
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


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
  """Rows over data and fsdp."""
  return NamedSharding(mesh, ROWS)


def partition(path, shape, mesh):
  """The PartitionSpec of a parameter, its EMA and its moments alike.

  `tensor` follows the table; `fsdp` takes the largest axis left that it
  divides. An axis that does not divide is left whole: such arrays are small.
  """
  axes = next((a for end, a in TABLE if re.search(f'{end}$', path)), ())
  spec = [None] * (len(shape) - len(axes)) + list(axes)
  splits = lambda i, name: (
    1 < mesh.shape[name] <= shape[i] and (shape[i] % mesh.shape[name] == 0)
  )
  spec = [a and (a if splits(i, a) else None) for i, a in enumerate(spec)]
  free = [i for i, a in enumerate(spec) if a is None and splits(i, 'fsdp')]
  if free:
    spec[max(free, key=lambda i: shape[i])] = 'fsdp'
  return PartitionSpec(*spec)


def tree_shardings(tree, mesh):
  """Each array's NamedSharding, by its path and shape."""

  def sharding(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return NamedSharding(mesh, partition(name, x.shape, mesh))

  return jax.tree_util.tree_map_with_path(sharding, tree)


def with_shardings(tree, mesh, memory='device'):
  """Shapes of a tree > the same with where each array will live.

  In the devices' memory, or in that of their hosts, 'pinned_host', see `fetch`.
  """

  def spec(x, place):
    place = place.with_memory_kind(memory)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  return jax.tree.map(spec, tree, tree_shardings(tree, mesh))


def fetch(tree):
  """Arrays in the memory of their devices; those of the host are copied."""
  here = lambda x: (
    jax.device_put(x, x.sharding.with_memory_kind('device'))
    if x.sharding.memory_kind == 'pinned_host'
    else x
  )
  return jax.tree.map(here, tree)


def keep_rows(mesh, batch_size):
  """An interceptor for flax.linen.intercept_methods, under which nets run.

  What every module returns, and its gradient, stays split by rows of the
  batch. Left alone, the compiler may gather activations where it should gather
  parameters.
  """
  free = PartitionSpec.UNCONSTRAINED

  def keep(x):
    if x is None or x.ndim < 2 or x.shape[0] != batch_size:
      return x
    spec = PartitionSpec(*ROWS, *[free] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

  def interceptor(method, args, kwargs, context):
    del context
    return jax.tree.map(keep, method(*args, **kwargs))

  return interceptor


def local_rows(mesh, batch_size):
  """The rows of a global batch that this process's devices hold, ascending."""
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  spans = {index[0].indices(batch_size)[:2] for index in places.values()}
  return [row for start, stop in sorted(spans) for row in range(start, stop)]


def put_batch(batch, mesh, spec):
  """This process's rows, as numpy > the global batch that spec describes."""

  def put(x, whole):
    size = whole.shape[0]
    place = {row: i for i, row in enumerate(local_rows(mesh, size))}

    def part(index):
      start, stop, _ = index[0].indices(size)
      return x[place[start] : place[start] + stop - start]

    return jax.make_array_from_callback(whole.shape, batch_sharding(mesh), part)

  return jax.tree.map(put, batch, spec)
