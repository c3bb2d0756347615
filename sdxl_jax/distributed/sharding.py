"""Where each array lives: batches by row, parameters over fsdp."""

import jax
from jax.sharding import NamedSharding, PartitionSpec


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
  """Rows over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def tree_shardings(tree, mesh):
  """Each array's largest axis that fsdp divides is split over it.

  Parameters, their EMA and Adam's moments have the same shapes and so the same
  places; what fsdp does not divide is small and is replicated.
  """
  n = mesh.shape['fsdp']

  def sharding(x):
    axes = [a for a in range(x.ndim) if x.shape[a] % n == 0]
    if n == 1 or not axes:
      return replicated(mesh)
    largest = max(axes, key=lambda a: x.shape[a])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, 'fsdp'))

  return jax.tree.map(sharding, tree)


def put_batch(batch, mesh):
  """This host's rows, as numpy > the global batch on the mesh."""
  sharding = batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
  }
