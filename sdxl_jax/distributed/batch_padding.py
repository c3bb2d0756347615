"""Pads a batch so that its rows divide evenly among the devices of a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.distributed import device_mesh, multihost, sharding


class Rows:
  """A batch of `count` images, its last row repeated to fill all devices.

  Args:
    mesh: whose devices split the rows; None: the default device, no padding.
    count: images.
  """

  def __init__(self, mesh: jax.sharding.Mesh | None, count: int):
    self.mesh = mesh
    self.count = count
    self.parts = device_mesh.row_devices(mesh) if mesh else 1
    self._padding = -count % self.parts

  def fill(self, entries: Sequence[Any] | None) -> list[Any] | None:
    """Pads a list with one entry per image; None and [] are returned."""
    if not entries:
      return entries
    return [*entries, *[entries[-1]] * self._padding]

  def put(self, array: jax.Array | np.ndarray) -> jax.Array:
    """Pads [count, ...] and splits the rows among the devices."""
    if self._padding:
      last = array[-1:]
      array = jnp.concatenate([array, *[last] * self._padding])
    return self.place(array)

  def place(self, array: jax.Array | np.ndarray) -> jax.Array:
    """Splits rows among the devices; their number must divide evenly."""
    if self.mesh is None:
      return jnp.asarray(array)
    return jax.device_put(array, sharding.batch_sharding(self.mesh))

  def put_each(
    self, name: str, array: Any, shape: tuple[int, ...]
  ) -> jax.Array | None:
    """Puts one array for all images, or one per image; None stays None.

    Args:
      name: of the array, for the error.
      array: of `shape`, or [count, *shape].
      shape: for one image.

    Returns:
      float32 [padded count, *shape].

    Raises:
      ValueError: for any other shape.
    """
    if array is None:
      return None
    # One for all images becomes one per image.
    array = np.asarray(array, np.float32)
    if array.shape == shape:
      array = np.broadcast_to(array, (self.count, *shape))
    if array.shape != (self.count, *shape):
      raise ValueError(
        f'{name} has shape {array.shape}; {self.count} images of this size '
        f'take {shape}, or {(self.count, *shape)} for one each'
      )
    return self.put(array)

  def fetch(self, array: jax.Array) -> np.ndarray:
    """Returns the rows of the images, [count, ...], without padding."""
    return multihost.fetch(array)[: self.count]
