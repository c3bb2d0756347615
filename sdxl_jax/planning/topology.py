"""Makes devices of a named machine, to compile for without having one.

v5p:4x4x4   a TPU slice: generation and sides of the block of chips
h100x8      one node of eight GPUs; also t4x1, l4x1, a100x1, ...
h100x8x2    two such nodes
here        the devices of this process
"""

import dataclasses
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from sdxl_jax.distributed import gpu_memory

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of a mesh; None: not known."""

  name: str
  memory: int | None = None  # bytes that a program may use
  flops: float | None = None  # peak dense 16-bit FLOPs per second
  bandwidth: float | None = None  # bytes/s of its memory
  link: float | None = None  # bytes/s sent to its slice or node, all links
  clock: float | None = None  # Hz of the cycles that a TPU's compiler counts
  compute_capability: str | None = None  # of a GPU, as '8.0'
  float32_flops: float | None = None  # peak of float32 on a GPU, or of TF32
  host_link: float | None = None  # bytes/s that it receives from its host


# FLOPs, bandwidths and links: cloud.google.com/tpu/docs/v4, v5p, v5e and v6e;
# links are one way, half of the "bidirectional" bandwidth there.
# Memory: what libtpu 0.0.42 and 0.0.50 leave of the HBM's 32, 95, 16 and 32 GB,
# from the error with which they refuse a larger program ("exceeds available HBM
# (95.73G)").
# Clock: peak FLOPs divided by the FLOPs of a chip's matrix units in one cycle,
# which are 2 * 8 * 128**2 on v4 and v5p, half as many on v5e and twice as many
# on v6e. With these clocks the estimated cycles of a large matmul amount to 70
# to 93 % of the peak. The clock of v4 agrees with the 1050 MHz of Jouppi et al.
# 2023, TPU v4.
TPUS = {
  'v4': Chip('TPU v4', int(30.75 * GIB), 275e12, 1200e9, 300e9, 1.05e9),
  'v5p': Chip('TPU v5p', int(95.73 * GIB), 459e12, 2765e9, 600e9, 1.75e9),
  'v5e': Chip('TPU v5e', int(15.75 * GIB), 197e12, 819e9, 200e9, 1.5e9),
  'v6e': Chip('TPU v6e', int(31.24 * GIB), 918e12, 1638e9, 400e9, 1.75e9),
}
# Shapes smaller than a 4x4x4 cube that Google rents; larger ones consist of
# cubes.
SMALL_BLOCKS = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')
PLANES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
LARGEST_BLOCK = {'v4': 4096, 'v5p': 6144}  # chips

# FLOPs without sparsity, bandwidth, NVLink one way (of T4 and L4: PCIe), PCIe
# one way: data sheets of A100, H100 and H200 SXM, T4 and L4. Memory, of which
# JAX allocates a fraction: openxla/xla, xla/backends/gpu/target_config/specs;
# of T4 and L4, what CUDA reports.
GPUS = {
  'a100': Chip(
    'NVIDIA A100-SXM4-80GB',
    85100068864,
    312e12,
    2039e9,
    300e9,
    compute_capability='8.0',
    float32_flops=156e12,
    host_link=32e9,
  ),
  'a100-40gb': Chip(
    'NVIDIA A100-SXM4-40GB',
    42331013120,
    312e12,
    1555e9,
    300e9,
    compute_capability='8.0',
    float32_flops=156e12,
    host_link=32e9,
  ),
  'h100': Chip(
    'NVIDIA H100 80GB HBM3',
    84942979072,
    989e12,
    3352e9,
    450e9,
    compute_capability='9.0',
    float32_flops=494e12,
    host_link=64e9,
  ),
  'h200': Chip(
    'NVIDIA H200',
    151397597184,
    989e12,
    4800e9,
    450e9,
    compute_capability='9.0',
    float32_flops=494e12,
    host_link=64e9,
  ),
  'l4': Chip(
    'NVIDIA L4',
    23583784960,
    121e12,
    300e9,
    32e9,
    compute_capability='8.9',
    float32_flops=60e12,
    host_link=32e9,
  ),
  't4': Chip(
    'Tesla T4',
    15843721216,
    65e12,
    320e9,
    16e9,
    compute_capability='7.5',
    float32_flops=8.1e12,
    host_link=16e9,
  ),
}
# Chip properties that XLA's GPU compiler needs, as a GpuTargetConfigProto.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory} {architecture}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""
# By compute capability.
ARCHITECTURES = {
  '7.5': """
  core_count: 40 fpus_per_core: 64 clock_rate_ghz: 1.59
  threads_per_core_limit: 1024
  shared_memory_per_core: 65536 shared_memory_per_block_optin: 65536
  l2_cache_size: 4194304 cuda_compute_capability { major: 7 minor: 5 }""",
  '8.0': """
  core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41
  threads_per_core_limit: 2048
  shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912
  l2_cache_size: 41943040 cuda_compute_capability { major: 8 }""",
  '8.9': """
  core_count: 58 fpus_per_core: 128 clock_rate_ghz: 2.04
  threads_per_core_limit: 1536
  shared_memory_per_core: 102400 shared_memory_per_block_optin: 101376
  l2_cache_size: 50331648 cuda_compute_capability { major: 8 minor: 9 }""",
  '9.0': """
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_core_limit: 2048
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  cuda_compute_capability {
    major: 9 feature_extension: ACCELERATED_FEATURES
  }""",
}
EXAMPLES = (
  'v4:2x2x2, v5p:4x4x4, v5e:4x4 and v6e:4x4 (TPU slices), h100x8, h200x8, '
  'a100x8, a100-40gbx8, l4x1 and t4x2 (nodes of GPUs), h100x8x2 (two such '
  'nodes), here (the devices of this process)'
)


def make_devices(name: str) -> tuple[list[jax.Device], Chip]:
  """Makes the devices of a named machine, for a mesh to compile for.

  Call it before JAX runs anything: for all names but `here` it restricts JAX to
  the CPU of this machine.

  Raises:
    ValueError: for a name or shape that does not exist, or if the compiler for
      the machine is not installed.
  """
  if name == 'here':
    return local_devices()
  tpu = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  gpu = re.fullmatch(r'([a-z]\d+(?:-\d+gb)?)x(\d+)(?:x(\d+))?', name)
  if tpu and tpu.group(1) in TPUS:
    return make_tpu_devices(*tpu.groups())
  if gpu and gpu.group(1) in GPUS:
    chip, per_node, nodes = gpu.groups()
    return make_gpu_devices(name, chip, int(per_node), int(nodes or 1))
  raise ValueError(f'no topology is named {name!r}; there are {EXAMPLES}')


def local_devices() -> tuple[list[jax.Device], Chip]:
  """Returns the devices of this process, whose speed is not known."""
  devices = jax.devices()
  return devices, Chip(devices[0].device_kind)


def make_tpu_devices(
  generation: str, shape: str
) -> tuple[list[jax.Device], Chip]:
  """Makes the devices of a TPU slice; see make_devices."""
  sides = [int(side) for side in shape.split('x')]
  check_slice(generation, shape, sides)
  # libtpu looks up the slice that its machine belongs to; these settings
  # replace the look-up. The accelerator type need not match the topology.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5p-8')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_WORKER_ID', '0')
  # Compiling uses no chip, so that other processes may hold libtpu.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # The two cores of a v4 chip form one device, which is v5p's default.
  options = {'chip_config_name': 'megacore'} if generation == 'v4' else {}
  if shape == '1x1':
    options['chips_per_host_bounds'] = [1, 1, 1]
  devices = make_compile_only_devices(
    "pip install 'jax[tpu]'", f'{generation}:{shape}', 'tpu', **options
  )
  # A chip's link bandwidth holds for two links per axis.
  chip = TPUS[generation]
  share = count_links(generation, sides) / (2 * len(sides))
  return devices, dataclasses.replace(chip, link=chip.link * share)


def check_slice(generation: str, shape: str, sides: list[int]) -> None:
  """Raises ValueError if Google has no slice of this shape."""
  if generation in LARGEST_BLOCK:
    largest = LARGEST_BLOCK[generation]
    is_cubes = len(sides) == 3 and all(s and s % 4 == 0 for s in sides)
    exists = shape in SMALL_BLOCKS or (is_cubes and math.prod(sides) <= largest)
    shapes = (
      f'{", ".join(SMALL_BLOCKS)} or three multiples of 4, up to {largest} '
      'chips'
    )
  else:
    exists = shape in PLANES
    shapes = ', '.join(PLANES)
  if not exists:
    raise ValueError(
      f'{generation}:{shape} is not a slice of a {TPUS[generation].name}; its '
      f'shapes are {shapes}'
    )


def count_links(generation: str, sides: list[int]) -> int:
  """Counts the links that a chip can use at once, along all axes.

  A chip has two links along an axis that closes into a ring, one along an open
  axis. The axes of a block close if the block consists of whole cubes, the axis
  of a plane if it spans the pod, 16 chips.
  """
  if generation in LARGEST_BLOCK:
    rings = [all(side % 4 == 0 for side in sides)] * 3
  else:
    rings = [side == 16 for side in sides]
  return sum((2 if ring else 1) for side, ring in zip(sides, rings) if side > 1)


def make_gpu_devices(
  name: str, model: str, per_node: int, nodes: int
) -> tuple[list[jax.Device], Chip]:
  """Makes the devices of nodes of GPUs; see make_devices."""
  if not (1 <= per_node <= 8 and nodes >= 1):
    raise ValueError(
      f'{name} has {per_node} GPUs per node and {nodes} nodes; there must be '
      '1 to 8 GPUs per node and at least one node'
    )
  # The compiler is configured by the properties of the chip.
  chip = GPUS[model]
  architecture = ARCHITECTURES[chip.compute_capability]
  target = TARGET.format(architecture=architecture, **dataclasses.asdict(chip))
  version = jax.__version__
  devices = make_compile_only_devices(
    f'pip install --no-deps jax-cuda13-plugin=={version} '
    f'jax-cuda13-pjrt=={version}',
    name,
    'cuda',
    target_config=target,
    topology=f'1x{nodes}x{per_node}',
  )
  # A program may use what JAX allocates.
  memory = int(chip.memory * gpu_memory.fraction())
  return devices, dataclasses.replace(chip, memory=memory)


def make_compile_only_devices(
  install: str, name: str, platform: str, **options: Any
) -> list[jax.Device]:
  """Makes devices that programs can be compiled for but not run on.

  Args:
    install: command that installs the compiler.
    name: of the topology.
    platform: 'tpu' or 'cuda'.
    **options: for the compiler's plug-in.

  Raises:
    ValueError: if the compiler is not installed or refuses the topology.
  """
  # Otherwise JAX would look for chips of the platform to run on.
  jax.config.update('jax_platforms', 'cpu')
  try:
    return topologies.get_topology_desc(name, platform, **options).devices
  except (RuntimeError, NotImplementedError) as error:
    # Both compilers are plug-ins of JAX; a missing one raises either message.
    absent = 'not installed' in str(error) or 'not implemented' in str(error)
    reason = 'its compiler is not installed' if absent else str(error)
    remedy = f'; {install}' if absent else ''
    raise ValueError(f'cannot compile for {name}: {reason}{remedy}') from error
