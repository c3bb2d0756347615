"""A net's parameters as an orbax checkpoint: our tree, as it runs.

Layers that run under nn.scan are stacked in it, on a leading axis. Any project
reads it with orbax alone, straight onto its mesh.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sdxl_jax.weights.diffusers import tensor_names

FOLDER = 'params'  # in that of a net
COPIED_GB = 1  # of arrays, at once, on their way to the disk


def on_host(target):
  """A tree of shapes, their arrays to be JAX's and in the host's memory.

  Where JAX_PLATFORMS leaves out the CPU they are numpy's.
  """
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return target
  there = jax.sharding.SingleDeviceSharding(host)
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there)
  return jax.tree.map(place, target)


def save(folder, params):
  """Writes a tree of arrays; of those in numpy orbax would hold two copies."""
  handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=COPIED_GB)
  with ocp.Checkpointer(handler) as writer:
    save = ocp.args.PyTreeSave(params)
    writer.save(pathlib.Path(folder).absolute(), args=save)


def shapes(folder):
  """The tree of shapes and dtypes of a checkpoint.

  Raises:
    ValueError: for a folder that holds none.
  """
  try:
    with ocp.StandardCheckpointer() as reader:
      found = reader.metadata(pathlib.Path(folder).absolute()).item_metadata
    to_shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.tree.map(to_shape, dict(found.tree))
  except Exception as error:  # orbax tells of a broken one in many ways
    raise ValueError(broken(folder, error)) from error


def restore(folder, target):
  """The tree in a checkpoint, stacked or not as the target is.

  Args:
    folder: of the checkpoint.
    target: tree of jax.ShapeDtypeStruct; an array goes where its leaf has a
      `sharding`, and stays in numpy without one. It is cast to its dtype.

  Raises:
    ValueError: where the two do not fit, or for a broken checkpoint.
  """
  saved = shapes(folder)
  tensor_names.match_to_model(tensor_names.tensors(saved), target)
  if set(tensor_names.flat(saved)) == set(tensor_names.flat(target)):
    return read(folder, target)
  # Stacked otherwise: through the tensors that both consist of.
  return tensor_names.from_published(
    tensor_names.tensors(read(folder, saved)), target
  )


def lazy(folder):
  """{published name: Tensor} of a checkpoint, which is read with the first."""
  saved = shapes(folder)
  return tensor_names.lazy(saved, lambda: read(folder, saved))


def read(folder, target):
  """The tree in a checkpoint, whose paths are those of the target."""

  def place(leaf):
    if leaf.sharding is None:
      return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
      sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )

  folder = pathlib.Path(folder).absolute()
  args = ocp.args.PyTreeRestore(target, jax.tree.map(place, target))
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(folder, args=args)
  except Exception as error:
    raise ValueError(broken(folder, error)) from error


def broken(folder, error):
  return (
    f'{folder} is no whole orbax checkpoint '
    f'({" ".join(str(error).split())[:300]}): copy it again'
  )


def dtype_of(tensors):
  """The dtype that holds all of a net's tensors."""
  return jnp.result_type(*{tensor.dtype for tensor in tensors.values()})
