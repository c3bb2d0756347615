"""Chooses the types that sampling computes in, where they are 'auto'."""

import os
from typing import Any

import jax

from sdxl_jax.models import compute_dtype


def resolve(
  dtype: str, vae_dtype: str, device: Any
) -> tuple[dict[str, str], tuple[str, ...]]:
  """Replaces 'auto' by the types for the devices that sample.

  Args:
    dtype: of UNet and text encoders, see compute_dtype.choose.
    vae_dtype: of the autoencoder, see compute_dtype.choose_vae.
    device: one of them, or what compute_dtype.choose needs of it.

  Returns:
    {'dtype', 'vae_dtype'}, and a line for the user if something else than
    float32 was chosen.

  Raises:
    ValueError: for an unknown type.
  """
  chosen = {
    'dtype': compute_dtype.choose(dtype, device),
    'vae_dtype': compute_dtype.choose_vae(vae_dtype, device),
  }
  asked = {'dtype': dtype, 'vae_dtype': vae_dtype}
  found = {name: chosen[name] for name in asked if asked[name] == 'auto'}
  if set(found.values()) <= {'float32'}:
    return chosen, ()
  text = ' and '.join(f'{name} {value}' for name, value in found.items())
  return chosen, (f'chosen for {device.device_kind}: {text}',)


def device_of(mesh: jax.sharding.Mesh | None) -> jax.Device:
  """Returns a device of a mesh; the first local one without a mesh."""
  return mesh.devices.flat[0] if mesh else jax.local_devices()[0]


def check_vae(
  vae_dtype: str, vae: str | os.PathLike[str] | None = None
) -> None:
  """Raises ValueError where the autoencoder would overflow.

  Args:
    vae_dtype: of the autoencoder, not 'auto'.
    vae: path of another autoencoder than the model's own; whether one was made
      for float16 cannot be seen in its weights.
  """
  if vae_dtype == 'float16' and vae is None:
    raise ValueError(
      "vae_dtype float16 overflows in SDXL's own autoencoder: pass --vae with "
      'one that was made for it, such as sdxl-vae-fp16-fix, or --vae_dtype '
      'bfloat16 or float32'
    )
