"""Makes devices of a named machine, to compile for without having one.

v5p:4x4x4   a TPU slice: generation and sides of the block of chips
h100x8      one node of eight GPUs; also t4x1, l4x1, rtx3060x1, ...
h100x8x2    two such nodes
here        the devices of this process
"""

import dataclasses
import itertools
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from sdxl_jax.distributed import gpu_memory
from sdxl_jax.planning import chips

# Shapes smaller than a 4x4x4 cube that Google rents; larger ones consist of
# cubes.
SMALL_BLOCKS = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')
PLANES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
LARGEST_BLOCK = {'v4': 4096, 'v5p': 6144}  # chips

# Names: (chip, sides of a slice), (chip, of a node, nodes).
TPU = re.compile(r'(\w+):(\d+(?:x\d+)*)')
GPU = re.compile(r'([a-z]+\d+(?:-\d+gb)?)x(\d+)(?:x(\d+))?')
EXAMPLES = (
  'v4:2x2x2, v5p:4x4x4, v5e:4x4 and v6e:4x4 (TPU slices), h100x8, h200x8, '
  'a100x8, a100-40gbx8, l4x1, t4x2, rtx4080x1 and rtx3060x1 (nodes of GPUs), '
  'h100x8x2 (two such nodes), here (the devices of this process)'
)


def make_devices(name: str) -> tuple[list[jax.Device], chips.Chip]:
  """Makes the devices of a named machine, for a mesh to compile for.

  Call it before JAX runs anything: for all names but `here` it restricts JAX to
  the CPU of this machine.

  Raises:
    ValueError: for a name or shape that does not exist, or if the compiler for
      the machine is not installed.
  """
  if name == 'here':
    return local_devices()
  found, _ = parse(name)
  if found.re is TPU:
    return make_tpu_devices(*found.groups())
  chip, per_node, nodes = found.groups()
  return make_gpu_devices(name, chip, int(per_node), int(nodes or 1))


def chip_of(name: str) -> chips.Chip | None:
  """Returns the chip of a topology's name, None for the devices here.

  Raises:
    ValueError: for a name that does not exist.
  """
  return None if name == 'here' else parse(name)[1]


def parse(name: str) -> tuple[re.Match, chips.Chip]:
  """Returns (match of TPU or GPU, chip) of a topology's name.

  Raises:
    ValueError: for a name that does not exist.
  """
  for pattern, known in (TPU, chips.TPUS), (GPU, chips.GPUS):
    found = pattern.fullmatch(name)
    if found and found.group(1) in known:
      return found, known[found.group(1)]
  raise ValueError(f'no topology is named {name!r}; there are {EXAMPLES}')


def parts(name: str) -> dict[int, str]:
  """Returns {devices: topology} of the machines that a machine contains.

  Of several with as many devices, the one whose sides differ least.

  Raises:
    ValueError: for a machine that does not exist.
  """
  if name == 'here':
    return {len(jax.devices()): name}
  found, _ = parse(name)
  if found.re is GPU:
    chip, per_node, nodes = found.groups()
    per_node, nodes = int(per_node), int(nodes or 1)
    inside = {n: f'{chip}x{n}' for n in range(1, per_node + 1)}
    more = range(2, nodes + 1)
    return inside | {n * per_node: f'{chip}x{per_node}x{n}' for n in more}
  generation, shape = found.groups()
  sides = [int(side) for side in shape.split('x')]
  check_slice(generation, shape, sides)
  smaller = PLANES
  if generation in LARGEST_BLOCK:
    x, y, z = (range(4, side + 1, 4) for side in sides)
    cubes = itertools.product(x, y, z)
    smaller = *SMALL_BLOCKS, *('x'.join(map(str, cube)) for cube in cubes)
  contained = {}
  for part in smaller:
    lengths = [int(side) for side in part.split('x')]
    if all(a <= b for a, b in zip(sorted(lengths), sorted(sides))):
      contained.setdefault(math.prod(lengths), []).append((lengths, part))
  return {
    count: f'{generation}:{min(those, key=lambda p: max(p[0]))[1]}'
    for count, those in sorted(contained.items())
  }


def local_devices() -> tuple[list[jax.Device], chips.Chip]:
  """Returns the devices of this process, whose speed is not known."""
  devices = jax.devices()
  return devices, chips.Chip(devices[0].device_kind)


def make_tpu_devices(
  generation: str, shape: str
) -> tuple[list[jax.Device], chips.Chip]:
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
  # Slices of one host, of which some are not libtpu's default.
  one_host = {'1x1': [1, 1, 1], '2x4': [2, 4, 1]}
  if shape in one_host:
    options['chips_per_host_bounds'] = one_host[shape]
  devices = make_compile_only_devices(
    "pip install 'jax[tpu]'", f'{generation}:{shape}', 'tpu', **options
  )
  # A chip's link bandwidth holds for two links per axis.
  chip = chips.TPUS[generation]
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
    name = chips.TPUS[generation].name
    raise ValueError(
      f'{generation}:{shape} is not a slice of a {name}; its shapes are '
      f'{shapes}'
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
) -> tuple[list[jax.Device], chips.Chip]:
  """Makes the devices of nodes of GPUs; see make_devices."""
  if not (1 <= per_node <= 8 and nodes >= 1):
    raise ValueError(
      f'{name} has {per_node} GPUs per node and {nodes} nodes; there must be '
      '1 to 8 GPUs per node and at least one node'
    )
  # The compiler is configured by the properties of the chip.
  chip = chips.GPUS[model]
  architecture = chips.ARCHITECTURES[chip.compute_capability]
  target = chips.TARGET.format(
    architecture=architecture, **dataclasses.asdict(chip)
  )
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
