"""The pictures of a batch as rows that a mesh shares out."""

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.distributed import device_mesh, multihost, sharding


class Rows:
  """A batch whose rows a mesh shares out, the last one repeated to fill it."""

  def __init__(self, mesh, count):
    self.mesh, self.count = mesh, count
    self.parts = device_mesh.row_devices(mesh) if mesh else 1
    self.surplus = -count % self.parts

  def fill(self, listed):
    """A list of one entry for each picture, or None, for all rows."""
    return listed and [*listed, *[listed[-1]] * self.surplus]

  def put(self, array):
    """[count, ...] > all rows, where they belong."""
    if self.surplus:
      last = array[-1:]
      array = jnp.concatenate([array, *[last] * self.surplus])
    return self.place(array)

  def place(self, array):
    """All rows, or one for each device, where they belong."""
    if self.mesh is None:
      return jnp.asarray(array)
    return jax.device_put(array, sharding.batch_sharding(self.mesh))

  def put_each(self, name, array, shape):
    """`shape` for all pictures, or [count, *shape], or None.

    Raises:
      ValueError: for any other shape.
    """
    if array is None:
      return None
    array = np.asarray(array, np.float32)
    if array.shape == shape:
      array = np.broadcast_to(array, (self.count, *shape))
    if array.shape != (self.count, *shape):
      raise ValueError(
        f'{name} has shape {array.shape}; {self.count} pictures of this size '
        f'take {shape}, or {(self.count, *shape)} for one each'
      )
    return self.put(array)

  def fetch(self, array):
    """All rows > numpy [count, ...]."""
    return multihost.fetch(array)[: self.count]
