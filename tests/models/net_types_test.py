"""Types in place of 'auto', by the device and by the run so far."""

import pytest

from configs import lora
from sdxl_jax.models import compute_dtype, from_config, net_types

T4 = compute_dtype.Kind('gpu', '7.5')
L4 = compute_dtype.Kind('gpu', '8.9')
TPU = compute_dtype.Kind('tpu')
CPU = compute_dtype.Kind('cpu')


def types(config):
  return {
    name: (config[name].dtype, config[name].param_dtype)
    for name in net_types.NETS
  }


@pytest.mark.parametrize(
  'device, dtype',
  [(T4, 'float16'), (L4, 'bfloat16'), (TPU, 'bfloat16'), (CPU, 'float32')],
)
def test_lora_computes_in_what_the_device_multiplies(device, dtype):
  given = lora.get_config()
  config = net_types.resolve(given, device)
  frozen = dict.fromkeys(('unet', 'text_encoder', 'text_encoder_2'))
  assert types(config) == {n: (dtype, dtype) for n in frozen} | {
    'vae': ('float32', 'float32')
  }
  assert config.is_locked and not net_types.open_fields(config)
  assert net_types.describe(given, config) == [
    "types in place of 'auto': " + ', '.join(f'{n} {dtype}' for n in frozen)
  ]
  # Nothing is left to choose, elsewhere either.
  assert net_types.resolve(config, TPU) is config
  assert net_types.describe(config, config) == []


def test_what_is_trained_is_stored_in_float32():
  config = lora.get_config().unlock()
  config.update(trained=('unet',), lora={})
  config.vae.update(dtype='auto', param_dtype='auto')
  chosen = net_types.resolve(config, T4)
  assert types(chosen) == {
    'unet': ('float16', 'float32'),
    'vae': ('float32', 'float32'),  # which overflows in float16
    'text_encoder': ('float16', 'float16'),
    'text_encoder_2': ('float16', 'float16'),
  }
  (line,) = net_types.describe(config, chosen)
  assert line.endswith(
    'unet float16 (parameters float32), vae float32, text_encoder float16, '
    'text_encoder_2 float16'
  )


def test_a_run_keeps_the_types_it_began_with():
  earlier = net_types.resolve(lora.get_config(), T4).to_dict()
  moved = net_types.resolve(lora.get_config(), L4, earlier)
  assert moved.to_dict() == earlier
  # A type that is named is another matter, and so is one that is not known.
  config = lora.get_config().unlock()
  config.unet.update(dtype='float32')
  assert net_types.resolve(config, L4, earlier).unet.dtype == 'float32'
  assert types(net_types.resolve(lora.get_config(), L4, {}))['unet'] == (
    ('bfloat16', 'bfloat16')
  )


def test_a_model_is_made_for_its_platform():
  nets = from_config.make_model(lora.get_config(), 'tpu')
  assert nets.unet.dtype == nets.unet.param_dtype == 'bfloat16'
  assert from_config.make_model(lora.get_config()).unet.dtype == 'float32'
