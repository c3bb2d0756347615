"""Which type each kind of device computes in."""

import jax
import pytest

from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import compute_dtype

Kind = compute_dtype.Kind
# (device, type of the UNet, type of the autoencoder)
DEVICES = {
  'TPU': (Kind('tpu'), 'bfloat16', 'bfloat16'),
  'H100': (Kind('gpu', '9.0'), 'bfloat16', 'bfloat16'),
  'B200': (Kind('cuda', '10.0'), 'bfloat16', 'bfloat16'),
  'L4': (Kind('gpu', '8.9'), 'bfloat16', 'bfloat16'),
  'A100': (Kind('gpu', '8.0'), 'bfloat16', 'bfloat16'),
  'T4': (Kind('gpu', '7.5'), 'float16', 'float32'),
  'V100': (Kind('gpu', '7.0'), 'float16', 'float32'),
  'compile-only GPU': (Kind('cuda'), 'bfloat16', 'bfloat16'),
  'MI300': (Kind('gpu', 'gfx942:sramecc+:xnack-'), 'bfloat16', 'bfloat16'),
  'MI210': (Kind('gpu', 'gfx90a'), 'bfloat16', 'bfloat16'),
  'MI100': (Kind('gpu', 'gfx908'), 'float16', 'float32'),
  'RX 6800': (Kind('gpu', 'gfx1030'), 'float16', 'float32'),
  'RX 7900': (Kind('gpu', 'gfx1100'), 'bfloat16', 'bfloat16'),
  'CPU': (Kind('cpu'), 'float32', 'float32'),
}


@pytest.mark.parametrize('name', DEVICES)
def test_auto(name):
  device, dtype, vae_dtype = DEVICES[name]
  assert compute_dtype.choose('auto', device) == dtype
  assert compute_dtype.choose_vae('auto', device) == vae_dtype


def test_auto_on_this_machine():
  assert compute_dtype.choose('auto', jax.local_devices()[0]) == 'float32'


@pytest.mark.parametrize('dtype', compute_dtype.DTYPES)
def test_a_type_that_is_named_is_kept(dtype):
  for device, *_ in DEVICES.values():
    assert compute_dtype.choose(dtype, device) == dtype
    assert compute_dtype.choose_vae(dtype, device) == dtype


def test_an_unknown_type():
  message = "is 'half'; pass auto, float32, bfloat16 or float16"
  with pytest.raises(ValueError, match=f'^dtype {message}'):
    compute_dtype.choose('half', Kind('cpu'))
  with pytest.raises(ValueError, match=f'^vae_dtype {message}'):
    compute_dtype.choose_vae('half', Kind('cpu'))


def test_cudnn_needs_a_new_gpu_of_nvidia():
  fused = {n for n, (d, *_) in DEVICES.items() if device_mesh.is_ampere(d)}
  assert {'H100', 'A100', 'B200', 'compile-only GPU'} <= fused
  assert not fused & {'T4', 'V100', 'MI300', 'MI210', 'RX 7900'}
