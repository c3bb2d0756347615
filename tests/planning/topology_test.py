"""Tests names of machines, and compiling where a compiler is installed."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdxl_jax.distributed import gpu_memory
from sdxl_jax.planning import topology


def installed(module):
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


HAS_TPU = installed('libtpu')
HAS_GPU = installed('jax_plugins.xla_cuda13')
tpu = pytest.mark.skipif(not HAS_TPU, reason="needs pip install 'jax[tpu]'")
gpu = pytest.mark.skipif(not HAS_GPU, reason='needs jax-cuda13-plugin')


def test_here():
  devices, chip = topology.make_devices('here')
  assert devices == jax.devices()
  assert chip.name == 'cpu' and chip.memory is None and chip.clock is None


@pytest.mark.parametrize(
  'name',
  ['', 'v5p', 'v9:2x2', 'h100', 'h300x8', 'h100:8', 'v5p:4x4x', 'H100x8'],
)
def test_unknown_name(name):
  with pytest.raises(ValueError, match='no topology is named.*v5p:4x4x4.*here'):
    topology.make_devices(name)


@pytest.mark.parametrize(
  'name, message',
  [
    ('v5p:3x1', 'v5p:3x1 is not a slice of a TPU v5p.*2x2x1.*multiples of 4'),
    ('v5p:4x4x0', 'v5p:4x4x0 is not a slice'),
    ('v4:32x32x32', 'up to 4096 chips'),
    ('v5e:2x2x2', 'v5e:2x2x2 is not a slice of a TPU v5e.*16x16'),
    ('v6e:32x32', 'v6e:32x32 is not a slice'),
    ('h100x9', 'h100x9 has 9 GPUs per node.*1 to 8'),
    ('h100x8x0', 'h100x8x0.*and 0 nodes'),
  ],
)
def test_impossible_shape(name, message):
  with pytest.raises(ValueError, match=message):
    topology.make_devices(name)


@pytest.mark.skipif(HAS_TPU, reason='libtpu is installed')
def test_no_tpu_compiler():
  with pytest.raises(ValueError, match=r"v5p:2x2x1.*pip install 'jax\[tpu\]'"):
    topology.make_devices('v5p:2x2x1')


@pytest.mark.skipif(HAS_GPU, reason='the CUDA plugin is installed')
def test_no_gpu_compiler():
  version = jax.__version__
  with pytest.raises(ValueError, match=f'h100x8.*cuda13-pjrt=={version}'):
    topology.make_devices('h100x8')


def test_count_links():
  assert topology.count_links('v5p', [2, 2, 1]) == 2
  assert topology.count_links('v5p', [2, 4, 4]) == 3
  assert topology.count_links('v5p', [4, 4, 8]) == 6
  assert topology.count_links('v5e', [4, 4]) == 2
  assert topology.count_links('v6e', [8, 16]) == 3


def matmul(devices):
  """Compiles rows of x times a matrix for all of the devices."""
  mesh = Mesh(np.array(devices), 'x')
  rows = NamedSharding(mesh, PartitionSpec('x'))
  x = jax.ShapeDtypeStruct((128 * len(devices), 256), jnp.bfloat16)
  w = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
  step = jax.jit(lambda x, w: x @ w, in_shardings=(rows, None))
  return step.lower(x, w).compile()


@tpu
@pytest.mark.parametrize(
  'name, count, hosts, link',
  [
    ('v4:2x2x2', 8, 2, 150e9),
    ('v5p:4x4x4', 64, 16, 600e9),
    ('v5e:4x4', 16, 4, 100e9),
    ('v6e:2x2', 4, 1, 200e9),
    ('v5e:1x1', 1, 1, 0),
    ('v5e:2x4', 8, 1, 100e9),
  ],
)
def test_tpu(name, count, hosts, link):
  devices, chip = topology.make_devices(name)
  assert len(devices) == count
  assert len({device.process_index for device in devices}) == hosts
  assert chip.link == link
  assert 'estimated_cycles' in matmul(devices[:2]).as_text()


@tpu
@pytest.mark.parametrize(
  'name', ['v4:2x2x1', 'v5p:2x2x1', 'v5e:2x2', 'v6e:2x2']
)
def test_tpu_memory_and_clock(name):
  """Compares our figures with the compiler's limit and its cycle estimates."""
  devices, chip = topology.make_devices(name)
  one = jax.sharding.SingleDeviceSharding(devices[0])
  huge = jax.ShapeDtypeStruct((2**19, 2**19), jnp.bfloat16, sharding=one)
  with pytest.raises(Exception, match='available HBM') as refused:
    jax.jit(lambda x: x + 1).lower(huge).compile()
  available = re.search(r'available HBM \(([\d.]+)G\)', str(refused.value))
  assert chip.memory / 2**30 == pytest.approx(float(available[1]), abs=0.02)
  x = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=one)
  text = jax.jit(lambda x: x @ x).lower(x).compile().as_text()
  cycles = int(text.split('"estimated_cycles":"')[1].split('"')[0])
  assert 0.6 < 2 * 8192**3 / (cycles / chip.clock) / chip.flops < 1


@gpu
@pytest.mark.parametrize(
  'name, count, nodes, gigabytes',
  [
    ('a100x8', 8, 1, 85.1),
    ('a100-40gbx4', 4, 1, 42.3),
    ('h100x8', 8, 1, 84.9),
    ('h200x8', 8, 1, 151.4),
    ('h100x8x2', 16, 2, 84.9),
    ('l4x1', 1, 1, 23.6),
    ('t4x2', 2, 1, 15.8),
    ('rtx4080x1', 1, 1, 16.9),
    ('rtx3060x1', 1, 1, 12.6),
  ],
)
def test_gpu(name, count, nodes, gigabytes, monkeypatch):
  for variable in gpu_memory.VARIABLES:
    monkeypatch.delenv(variable, raising=False)
  devices, chip = topology.make_devices(name)
  assert len(devices) == count
  assert len({device.process_index for device in devices}) == nodes
  assert devices[0].device_kind == chip.name
  assert chip.memory / 1e9 == pytest.approx(0.92 * gigabytes, abs=0.1)
  assert matmul(devices).memory_analysis().output_size_in_bytes == 128 * 512
  monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '0.5')
  _, chip = topology.make_devices(name)
  assert chip.memory / 1e9 == pytest.approx(0.5 * gigabytes, abs=0.1)
