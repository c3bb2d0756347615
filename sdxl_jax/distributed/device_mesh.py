"""The mesh of devices, and what its three axes share out.

data    copies of the parameters; each takes other rows of the batch
fsdp    parts of the parameters, gathered on use; other rows too
tensor  parts of each layer's heads and channels; the same rows
"""

import contextlib

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(data=-1, fsdp=1, tensor=1, devices=None):
  """A mesh over all devices; one axis may be -1, what the others leave.

  Neighbours along fsdp and tensor, which talk most, are neighbours in the
  machine: on one slice of a TPU, or one node of GPUs where they fit.

  Raises:
    ValueError: where the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = np.array([data, fsdp, tensor])
  if (shape == -1).sum() == 1:
    shape[shape == -1] = len(devices) // max(1, -shape.prod())
  if shape.prod() != len(devices) or (shape < 1).any():
    raise ValueError(
      f'mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit the '
      f'{len(devices)} devices here: their product must equal it; set one to '
      '-1 to take what is left'
    )
  return jax.sharding.Mesh(arrange(shape, devices), AXES)


def arrange(shape, devices):
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices > 1 and shape[0] % slices == 0:
    inner = shape // np.array([slices, 1, 1])
    return mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices)
  return mesh_utils.create_device_mesh(
    tuple(map(int, shape)), devices, allow_split_physical_axes=True
  )


def platform(mesh):
  """'tpu', 'gpu' or 'cpu'."""
  name = mesh.devices.flat[0].platform
  return 'gpu' if name == 'cuda' else name


def use(mesh):
  """A context in which nets find the mesh, for kernels of one device each."""
  return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


def is_ampere(device):
  """Whether a GPU has what cuDNN's fused attention asks for."""
  # Devices that are only compiled for do not tell.
  return float(getattr(device, 'compute_capability', 8.0)) >= 8


def row_devices(mesh):
  """How many devices share out the rows of a batch."""
  return mesh.shape['data'] * mesh.shape['fsdp']
