"""Reads and writes a net's parameters as an orbax checkpoint of our own tree.

Layers that run under nn.scan are stacked in it, on a leading axis. Any project
reads it with orbax alone, straight onto its mesh.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from sdxl_jax.weights import checked_cast, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names

FOLDER = 'params'  # in the folder of a net
COPIED_GB = 1  # of arrays, copied at once on their way to the disk


def on_host(target: dict[str, Any]) -> dict[str, Any]:
  """Adds the host's memory as sharding to a tree of shapes.

  Where JAX_PLATFORMS leaves out the CPU, the tree stays as it is, and arrays
  are numpy's.
  """
  try:
    host = jax.local_devices(backend='cpu')[0]
  except RuntimeError:
    return target
  sharding = jax.sharding.SingleDeviceSharding(host)

  def place(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(place, target)


def save(folder: str | pathlib.Path, params: dict[str, Any]) -> None:
  """Writes a tree of JAX arrays; of numpy arrays orbax would hold two copies"""
  handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=COPIED_GB)
  with ocp.Checkpointer(handler) as writer:
    args = ocp.args.PyTreeSave(params)
    writer.save(pathlib.Path(folder).absolute(), args=args)


def shapes(folder: str | pathlib.Path) -> dict[str, Any]:
  """Reads the tree of shapes and dtypes of a checkpoint.

  Raises:
    ValueError: if the folder holds no complete checkpoint.
  """
  try:
    with ocp.StandardCheckpointer() as reader:
      metadata = reader.metadata(pathlib.Path(folder).absolute())
    tree = dict(metadata.item_metadata.tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  except Exception as error:  # orbax raises many types for a broken one
    raise ValueError(describe_broken(folder, error)) from error


def restore(
  folder: str | pathlib.Path, target: dict[str, Any]
) -> dict[str, Any]:
  """Restores the tree of a checkpoint, stacked or not as the target is.

  Args:
    folder: of the checkpoint.
    target: tree of jax.ShapeDtypeStruct. Each array is cast to the dtype of its
      leaf and placed on the leaf's `sharding`; without one it stays in numpy.

  Raises:
    ValueError: if the two do not match, or the checkpoint is broken.
  """
  saved = shapes(folder)
  tensor_names.match_to_model(tensor_names.tensors(saved), target)
  if set(tensor_names.flat(saved)) == set(tensor_names.flat(target)):
    params = read(folder, target)
    check_range(folder, saved, params)
    return params
  # One is stacked and the other is not: go through the published tensors.
  tensors = tensor_names.tensors(read(folder, saved))
  return tensor_names.from_published(tensors, target)


def check_range(
  folder: str | pathlib.Path, saved: dict[str, Any], params: dict[str, Any]
) -> None:
  """Raises ValueError if a number of a checkpoint overflowed in its cast.

  Args:
    folder: of the checkpoint.
    saved: tree of its shapes and dtypes.
    params: the same tree as it was read.
  """
  pairs = zip(jax.tree.leaves(saved), jax.tree.leaves(params))
  if not any(checked_cast.narrows(a.dtype, b.dtype) for a, b in pairs):
    return
  try:
    checked_cast.check_tree(params, str(folder))
  except checked_cast.NotFiniteError:
    # Not finite as it is stored, or by the cast: only the numbers show it.
    checked_cast.check_range(read(folder, saved), params, str(folder))
    raise


def lazy(
  folder: str | pathlib.Path,
) -> dict[str, safetensors_file.LazyTensor]:
  """Opens {published name: tensor}; the first read restores the whole tree."""
  saved = shapes(folder)
  return tensor_names.lazy(saved, lambda: read(folder, saved))


def read(folder: str | pathlib.Path, target: dict[str, Any]) -> dict[str, Any]:
  """Restores the tree of a checkpoint whose paths are those of the target."""

  def restore_args(leaf):
    if leaf.sharding is None:
      return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
      sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )

  args = ocp.args.PyTreeRestore(target, jax.tree.map(restore_args, target))
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(pathlib.Path(folder).absolute(), args=args)
  except Exception as error:
    raise ValueError(describe_broken(folder, error)) from error


def describe_broken(folder: str | pathlib.Path, error: Exception) -> str:
  """Describes in one line why a checkpoint cannot be read."""
  reason = ' '.join(str(error).split())[:300]
  return (
    f'{folder} is an incomplete or corrupt orbax checkpoint ({reason}): '
    're-download it'
  )


def common_dtype(tensors: dict[str, safetensors_file.LazyTensor]) -> np.dtype:
  """Returns the dtype that holds all of a net's tensors without loss."""
  return jnp.result_type(*{tensor.dtype for tensor in tensors.values()})
