"""Arranges the devices as a mesh of three axes.

data    copies of the parameters; each copy takes other rows of the batch
fsdp    shards of the parameters, gathered for use; other rows too
tensor  shards of each layer's heads and channels; the same rows
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> jax.sharding.Mesh:
  """Makes a mesh; one axis may be -1, for all devices that the others leave.

  Neighbours along fsdp and tensor, which communicate most, are neighbours in
  the machine: on one TPU slice, or on one node of GPUs if they fit it.

  Args:
    data, fsdp, tensor: sizes of the axes.
    devices: default: all devices of all processes.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = np.array([data, fsdp, tensor])
  # Fill in the axis that is -1.
  if (shape == -1).sum() == 1:
    shape[shape == -1] = len(devices) // max(1, -shape.prod())
  if shape.prod() != len(devices) or (shape < 1).any():
    raise ValueError(
      f'mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit the '
      f'{len(devices)} devices here: their product must equal it; set one to '
      '-1 to take what is left'
    )
  return jax.sharding.Mesh(arrange(shape, devices), AXES)


def arrange(shape: np.ndarray, devices: Sequence[jax.Device]) -> np.ndarray:
  """Arranges devices by their position; slices are split along data."""
  # Traffic between slices is slow, so only copies of the parameters, along
  # data, lie on different slices.
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices > 1 and shape[0] % slices == 0:
    inner = shape // np.array([slices, 1, 1])
    return mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices)
  return mesh_utils.create_device_mesh(
    tuple(map(int, shape)), devices, allow_split_physical_axes=True
  )


def platform(mesh: jax.sharding.Mesh) -> str:
  """Returns 'tpu', 'gpu' or 'cpu'."""
  name = mesh.devices.flat[0].platform
  return 'gpu' if name == 'cuda' else name


def use(
  mesh: jax.sharding.Mesh | None,
) -> contextlib.AbstractContextManager:
  """Returns a context that sets the mesh for kernels, which run per device."""
  return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def is_ampere(device: jax.Device) -> bool:
  """Returns whether a GPU is new enough for cuDNN's fused attention."""
  if amd_version(device) is not None:
    return False
  # Compile-only devices have no compute_capability and count as new enough.
  capability = compute_capability(device)
  return capability is None or capability >= (8, 0)


def compute_capability(device: Any) -> tuple[int, int] | None:
  """Returns (major, minor) of an NVIDIA GPU; None where it is not known."""
  text = getattr(device, 'compute_capability', None)
  found = re.match(r'(\d+)\.(\d+)', text or '')
  return (int(found[1]), int(found[2])) if found else None


def amd_version(device: Any) -> tuple[int, int, int] | None:
  """Returns (major, minor, stepping) of an AMD GPU, or None for other devices.

  They are the digits of its name in LLVM: gfx90a is (9, 0, 10), and gfx1100 is
  (11, 0, 0).
  """
  text = getattr(device, 'compute_capability', None)
  found = re.match(r'gfx(\d+)([\da-f])([\da-f])(?![\da-f])', text or '')
  if not found:
    return None
  return int(found[1]), int(found[2], 16), int(found[3], 16)


def row_devices(mesh: jax.sharding.Mesh) -> int:
  """Returns the number of devices that split the rows of a batch."""
  return mesh.shape['data'] * mesh.shape['fsdp']
