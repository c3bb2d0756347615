"""The mesh of devices: axes data (replicas) and fsdp (sharded parameters)."""

import jax
import numpy as np

AXES = ('data', 'fsdp')


def make_mesh(data=-1, fsdp=1, devices=None):
  """A mesh over all devices; one axis may be -1, what the other leaves.

  Raises:
    ValueError: where the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = np.array([data, fsdp])
  if (shape == -1).sum() == 1:
    shape[shape == -1] = len(devices) // max(1, -shape.prod())
  if shape.prod() != len(devices) or (shape < 1).any():
    raise ValueError(
      f'mesh data={data}, fsdp={fsdp} does not fit the {len(devices)} devices '
      'here: their product must equal it; set one to -1 to take what is left'
    )
  return jax.sharding.Mesh(np.asarray(devices).reshape(shape), AXES)
