"""Machines by name, to compile for without having one.

v5p:4x4x4   a slice of a TPU: its generation and the sides of its block
h100x8      one node of GPUs
h100x8x2    two nodes of eight
here        the devices of this process
"""

import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

GIB = 2**30
# What JAX takes of a GPU for itself unless XLA_CLIENT_MEM_FRACTION says
# otherwise: docs.jax.dev/en/latest/gpu_memory_allocation.html
GPU_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of a mesh; None where it is not known."""

  name: str
  memory: int | None  # bytes that a program may use
  flops: float | None  # peak dense bfloat16 per second
  bandwidth: float | None  # bytes/s from and to its memory
  link: float | None  # bytes/s sent to peers in its slice or node, all links
  network: float | None  # bytes/s sent to other nodes; TPUs: one slice, so none
  clock: float | None  # Hz in which a TPU's compiler counts its cycles


# FLOPs, bandwidths and links: cloud.google.com/tpu/docs/v4, v5p, v5e and v6e;
# links are one way, half of the "bidirectional" bandwidth there.
# Memory: what libtpu 0.0.42 and 0.0.50 leave of the HBM's 32, 95, 16 and 32 GB,
# read from how they refuse a larger program ("exceeds available HBM (95.73G)").
# Clock: peak FLOPs over those of a chip's matrix units in one cycle, which are
# 2 * 8 * 128**2 on v4 and v5p, half of that on v5e and twice on v6e. It puts a
# large matmul's estimated cycles at 70 to 93 % of the peak. For v4 it agrees
# with the 1050 MHz of Jouppi et al. 2023, TPU v4.
TPUS = {
  'v4': Chip('TPU v4', int(30.75 * GIB), 275e12, 1200e9, 300e9, None, 1.05e9),
  'v5p': Chip('TPU v5p', int(95.73 * GIB), 459e12, 2765e9, 600e9, None, 1.75e9),
  'v5e': Chip('TPU v5e', int(15.75 * GIB), 197e12, 819e9, 200e9, None, 1.5e9),
  'v6e': Chip('TPU v6e', int(31.24 * GIB), 918e12, 1638e9, 400e9, None, 1.75e9),
}
# The shapes below a cube that Google rents; larger ones are made of cubes.
SMALL_BLOCKS = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')
PLANES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
LARGEST_BLOCK = {'v4': 4096, 'v5p': 6144}  # chips

# Data sheets of A100, H100 and H200 SXM: FLOPs without sparsity, bandwidth,
# NVLink one way; network: DGX nodes, a 200 or 400 Gb/s card per GPU. Memory is
# that in openxla/xla, xla/backends/gpu/target_config/specs, of which JAX
# takes its fraction.
GPUS = {
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB', 85100068864, 312e12, 2039e9, 300e9, 25e9, None
  ),
  'a100-40gb': Chip(
    'NVIDIA A100-SXM4-40GB', 42331013120, 312e12, 1555e9, 300e9, 25e9, None
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3', 84942979072, 989e12, 3352e9, 450e9, 50e9, None
  ),
  'h200': Chip('NVIDIA H200', 151397597184, 989e12, 4800e9, 450e9, 50e9, None),
}
# What XLA's GPU compiler must know of a chip (its GpuTargetConfigProto).
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory} {architecture}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
AMPERE = """
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41
  shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
  l2_cache_size: 41943040 cuda_compute_capability { major: 8 }"""
HOPPER = """
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  cuda_compute_capability {
    major: 9 feature_extension: ACCELERATED_FEATURES
  }"""
EXAMPLES = (
  'v4:2x2x2, v5p:4x4x4, v5e:4x4 and v6e:4x4 (TPU slices), h100x8, h200x8, '
  'a100x8 and a100-40gbx8 (nodes of GPUs), h100x8x2 (two such nodes), here '
  '(the devices of this process)'
)


def make_devices(name):
  """(devices, Chip) of a machine by name, for a mesh to compile for.

  Call it before JAX runs anything, since for all but `here` it tells JAX to run
  what it runs on this machine's CPU.

  Raises:
    ValueError: for a name or shape that does not exist, or where the compiler
      for it is not installed.
  """
  if name == 'here':
    return here()
  tpu = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  gpu = re.fullmatch(r'([a-z]\d+(?:-\d+gb)?)x(\d+)(?:x(\d+))?', name)
  if tpu and tpu.group(1) in TPUS:
    return tpu_devices(*tpu.groups())
  if gpu and gpu.group(1) in GPUS:
    chip, per_node, nodes = gpu.groups()
    return gpu_devices(name, chip, int(per_node), int(nodes or 1))
  raise ValueError(f'no topology is named {name!r}; there are {EXAMPLES}')


def here():
  devices = jax.devices()
  return devices, Chip(devices[0].device_kind, *[None] * 6)


def tpu_devices(generation, shape):
  sides = [int(side) for side in shape.split('x')]
  check_slice(generation, shape, sides)
  # libtpu asks its machine what it is part of; here it is part of nothing. The
  # accelerator type need not be that of the topology.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5p-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_WORKER_ID', '0')
  # Compiling needs no chip, so it need not wait for another process's.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # Both cores of a v4 chip as one device, as v5p does by itself.
  options = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
  if shape == '1x1':
    options['chips_per_host_bounds'] = [1, 1, 1]
  devices = compile_only(
    "pip install 'jax[tpu]'", f'{generation}:{shape}', 'tpu', **options
  )
  chip = TPUS[generation]
  share = links(generation, sides) / (2 * len(sides))
  return devices, dataclasses.replace(chip, link=chip.link * share)


def check_slice(generation, shape, sides):
  """Whether Google has such a slice."""
  if generation in LARGEST_BLOCK:
    most = LARGEST_BLOCK[generation]
    of_cubes = len(sides) == 3 and all(s and s % 4 == 0 for s in sides)
    known = shape in SMALL_BLOCKS or of_cubes and math.prod(sides) <= most
    shapes = f'{", ".join(SMALL_BLOCKS)} or three multiples of 4, up to {most}'
    shapes += ' chips'
  else:
    known, shapes = shape in PLANES, ', '.join(PLANES)
  if not known:
    raise ValueError(
      f'{generation}:{shape} is no slice of a {TPUS[generation].name}; its '
      f'shapes are {shapes}'
    )


def links(generation, sides):
  """How many of its links a chip can use at once along all axes.

  An axis that closes into a ring gives two, an open one gives one. Blocks close
  where they are made of whole cubes, planes where they span the pod, 16 chips.
  """
  if generation in LARGEST_BLOCK:
    rings = [all(side % 4 == 0 for side in sides)] * 3
  else:
    rings = [side == 16 for side in sides]
  return sum((2 if ring else 1) for side, ring in zip(sides, rings) if side > 1)


def gpu_devices(name, model, per_node, nodes):
  if not (1 <= per_node <= 8 and nodes >= 1):
    raise ValueError(
      f'{name} has {per_node} GPUs per node and {nodes} nodes; there must be '
      '1 to 8 GPUs per node and at least one node'
    )
  chip = GPUS[model]
  architecture = AMPERE if model.startswith('a') else HOPPER
  target = TARGET.format(architecture=architecture, **dataclasses.asdict(chip))
  version = jax.__version__
  devices = compile_only(
    f'pip install --no-deps jax-cuda13-plugin=={version} '
    f'jax-cuda13-pjrt=={version}',
    name,
    'cuda',
    target_config=target,
    topology=f'1x{nodes}x{per_node}',
  )
  fraction = float(os.environ.get('XLA_CLIENT_MEM_FRACTION', GPU_FRACTION))
  return devices, dataclasses.replace(chip, memory=int(chip.memory * fraction))


def compile_only(install, name, platform, **options):
  # Else JAX would look for chips, which are not there, to run what it runs.
  jax.config.update('jax_platforms', 'cpu')
  try:
    return topologies.get_topology_desc(name, platform, **options).devices
  except (RuntimeError, NotImplementedError) as error:
    # Both compilers are plug-ins of JAX, which says so in other words each.
    absent = 'not installed' in str(error) or 'not implemented' in str(error)
    reason = 'its compiler is not installed' if absent else str(error)
    remedy = f'; {install}' if absent else ''
    raise ValueError(f'cannot compile for {name}: {reason}{remedy}') from error
