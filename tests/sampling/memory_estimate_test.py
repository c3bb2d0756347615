"""Estimates of memory against what compilers gave to the same programs.

In MiB beside parameters, by `python -m sdxl_jax.plan --sample --config
configs/stage3.py --refiner configs/refiner.py --topology NAME --json FILE` with
jax 0.10.2: each phase's memory less its parameters. Base and refiner with
guidance, one image on each device.
"""

import dataclasses

import pytest

from sdxl_jax.models import controlnet, tiny_vae, vae
from sdxl_jax.sampling import memory_estimate
from tests.support import full_size

MIB = 2**20
# {(platform, UNet's type, attention, autoencoder's type, side in px):
# (steps, refiner's steps, decoding)}
COMPILED = {
  ('gpu', 'float16', 'xla', 'float32', 1024): (1039, 2000, 2442),  # t4x1
  ('gpu', 'bfloat16', 'xla', 'bfloat16', 1024): (1049, 2011, 1227),  # l4x1
  ('tpu', 'bfloat16', 'splash', 'bfloat16', 1024): (1115, 1002, 1237),  # v5e
}


@pytest.fixture(scope='module')
def base():
  return full_size.models('float16', 'float32', 'xla')[0]


@pytest.mark.parametrize('key', COMPILED)
def test_estimates_are_above_what_is_compiled_and_near(key):
  platform, dtype, attention, vae_dtype, side = key
  size = side // 8, side // 8
  base, refiner = full_size.models(dtype, vae_dtype, attention)
  found = (
    memory_estimate.steps(base, 2, size, 77, platform),
    memory_estimate.steps(refiner, 2, size, 77, platform),
    memory_estimate.decoding(base, size, None, platform),
  )
  for estimate, compiled in zip(found, COMPILED[key]):
    assert compiled < estimate / MIB < 2 * compiled


def test_more_pixels_and_rows_take_more(base):
  taken = [
    memory_estimate.steps(base, rows, size, 77, 'gpu')
    for rows, size in ((1, (64, 64)), (2, (64, 64)), (2, (128, 128)))
  ]
  assert taken == sorted(set(taken))
  tall, wide = (
    memory_estimate.steps(base, 2, size, 77, 'gpu')
    for size in ((96, 160), (160, 96))
  )
  assert tall == wide
  longer = memory_estimate.steps(base, 2, (64, 64), 4 * 77, 'gpu')
  assert longer > taken[1]


def test_tiles_take_a_fraction(base):
  for side in (128, 256, 512):
    whole, tiled = (
      memory_estimate.decoding(base, (side, side), tile, 'gpu')
      for tile in (None, 256)
    )
    assert tiled < 0.5 * whole
  finer = memory_estimate.decoding(base, (512, 512), 64, 'gpu')
  assert finer < tiled


def test_small_autoencoders(base):
  whole = memory_estimate.decoding(base, (128, 128), None, 'gpu')
  for config in (tiny_vae.TinyConfig(), vae.PatchConfig(patch=8)):
    other = dataclasses.replace(base, vae=config)
    taken = memory_estimate.decoding(other, (128, 128), None, 'gpu')
    assert 12 * 2**20 < taken < whole


def test_a_controlnet_waits_through_the_unet(base):
  """Its ten residuals do, and the copies of its kernels."""
  net = dataclasses.replace(
    controlnet.BASE, dtype='float16', param_dtype='float16'
  )
  steered = dataclasses.replace(base, controlnets=(net,))
  size, rows = (128, 128), 2
  on_cpu, on_gpu = (
    memory_estimate.steps(steered, rows, size, 77, platform)
    - memory_estimate.steps(base, rows, size, 77, platform)
    for platform in ('cpu', 'gpu')
  )
  # 320 channels at 128 x 128, then 640 and 1280 at a quarter and a sixteenth.
  numbers = 128**2 * (320 * 3 + (320 + 2 * 640) / 4 + (640 + 3 * 1280) / 16)
  residuals = 2 * rows * numbers
  assert residuals < on_cpu < 2 * residuals
  assert on_gpu > on_cpu + 2 * 10**8  # numbers in kernels of convolutions
