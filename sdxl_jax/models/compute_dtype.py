"""Chooses the type that nets compute in, by the device that runs them.

TPUs and GPUs have matrix units for 16-bit numbers. bfloat16 has the range of
float32 and 8 digits in binary; float16 has 11 digits and ends at 65504. GPUs
before Ampere multiply float16 only. A CPU gains nothing by either.
"""

from typing import Any, NamedTuple

from sdxl_jax.distributed import device_mesh

DTYPES = 'float32', 'bfloat16', 'float16'
CHOICES = ('auto', *DTYPES)
# First compute capability of NVIDIA's GPUs (Ampere), and first (major, minor,
# stepping) of AMD's (CDNA 2: gfx90a), whose matrix units take bfloat16.
AMPERE = 8, 0
CDNA_2 = 9, 0, 10
# AMD's graphics cards of the first two RDNA generations, gfx10.., have none.
RDNA_1, RDNA_3 = (10,), (11,)


class Kind(NamedTuple):
  """What of a device decides the type; a jax.Device has the same attributes."""

  platform: str  # 'cpu', 'tpu', or 'gpu', of which 'cuda' and 'rocm' are names
  compute_capability: str | None = None  # of a GPU: '7.5', or 'gfx90a'


def choose(dtype: str, device: Any) -> str:
  """Returns the type of UNet and text encoders.

  Args:
    dtype: one of CHOICES. 'auto' is bfloat16 on TPUs and on GPUs that multiply
      it (NVIDIA's from compute capability 8.0 on; AMD's from gfx90a on, but for
      gfx10..), float16 on other GPUs, and float32 on CPUs.
    device: jax.Device that the nets run on, or its Kind. A GPU without a
      compute capability is one of those that programs are only compiled for,
      and counts as new.

  Returns:
    one of DTYPES.

  Raises:
    ValueError: for another dtype.
  """
  check('dtype', dtype)
  if dtype != 'auto':
    return dtype
  if device.platform == 'cpu':
    return 'float32'
  if device.platform == 'tpu' or has_bfloat16(device):
    return 'bfloat16'
  return 'float16'


def choose_vae(dtype: str, device: Any) -> str:
  """Returns the type of the autoencoder.

  The activations of the published one are beyond the range of float16, so that
  'auto' is float32 where `choose` has float16. It cannot be known of another
  one whether it was made for float16: that has to be asked for.

  Args:
    dtype: one of CHOICES.
    device: see `choose`.

  Returns:
    one of DTYPES.

  Raises:
    ValueError: for another dtype.
  """
  check('vae_dtype', dtype)
  if dtype != 'auto':
    return dtype
  return 'bfloat16' if choose('auto', device) == 'bfloat16' else 'float32'


def check(name: str, dtype: str) -> None:
  """Raises ValueError for a dtype that is not one of CHOICES.

  Args:
    name: of the option, for the error.
    dtype: its value.
  """
  if dtype not in CHOICES:
    raise ValueError(
      f'{name} is {dtype!r}; pass {", ".join(CHOICES[:-1])} or {CHOICES[-1]}'
    )


def has_bfloat16(device: Any) -> bool:
  """Returns whether the matrix units of a GPU take bfloat16; see `choose`."""
  amd = device_mesh.amd_version(device)
  if amd is not None:
    return CDNA_2 <= amd < RDNA_1 or amd >= RDNA_3
  capability = device_mesh.compute_capability(device)
  return capability is None or capability >= AMPERE
