"""Types that are chosen for the devices, and what is said of them."""

import types

import jax
import pytest

from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import dtype_choice


def device(kind, platform, capability=None):
  """A device that is not here."""
  return types.SimpleNamespace(
    device_kind=kind, platform=platform, compute_capability=capability
  )


T4 = device('Tesla T4', 'gpu', '7.5')
H100 = device('NVIDIA H100', 'gpu', '9.0')
CPU = device('cpu', 'cpu')


@pytest.mark.parametrize(
  'asked, where, chosen, note',
  [
    (
      ('auto', 'auto'),
      T4,
      ('float16', 'float32'),
      ('chosen for Tesla T4: dtype float16 and vae_dtype float32',),
    ),
    (
      ('auto', 'auto'),
      H100,
      ('bfloat16', 'bfloat16'),
      ('chosen for NVIDIA H100: dtype bfloat16 and vae_dtype bfloat16',),
    ),
    (
      ('float32', 'auto'),
      H100,
      ('float32', 'bfloat16'),
      ('chosen for NVIDIA H100: vae_dtype bfloat16',),
    ),
    (('float16', 'auto'), T4, ('float16', 'float32'), ()),
    (('bfloat16', 'float16'), T4, ('bfloat16', 'float16'), ()),
    (('auto', 'auto'), CPU, ('float32', 'float32'), ()),
  ],
)
def test_resolve(asked, where, chosen, note):
  expected = dict(zip(('dtype', 'vae_dtype'), chosen))
  assert dtype_choice.resolve(*asked, where) == (expected, note)


def test_the_devices_here():
  mesh = device_mesh.make_mesh()
  for found in (dtype_choice.device_of(mesh), dtype_choice.device_of(None)):
    assert found == jax.local_devices()[0]


def test_float16_needs_another_autoencoder():
  message = 'vae_dtype float16 overflows .* pass --vae with one that was made'
  with pytest.raises(ValueError, match=message):
    dtype_choice.check_vae('float16')
  dtype_choice.check_vae('float16', 'fix.safetensors')
  for dtype in ('bfloat16', 'float32'):
    dtype_choice.check_vae(dtype)
