"""Chooses which nets wait in host memory, by the memory that is there.

Sizes of parameters are exact, and what programs take beside them is estimated.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sdxl_jax.models import sdxl, vae
from sdxl_jax.sampling import free_memory, memory_estimate, placement
from sdxl_jax.text import chunking
from sdxl_jax.weights import net_shapes, pretrained

# Fraction of a device's free memory that is left for fragments and libraries.
HEADROOM = 0.05
# Bytes of host memory that are left for the program itself: arrays that are
# being read, and the compiler.
HOST_RESERVE = 3 * 2**30
TILE = 256  # px, of decoding where the image at once does not fit
TEXT_ENCODERS = 'text_encoder', 'text_encoder_2'


@dataclasses.dataclass(frozen=True)
class Workload:
  """What is sampled at once, by which the memory of programs is estimated."""

  size: tuple[int, int]  # (height, width) in px
  batch: int = 1  # images on each device
  branches: int = 2  # rows of the UNet for each image
  chunks: int = 1  # of 77 tokens in each prompt
  tile: int | None = None  # see tiled_decoding.decode
  encodes: bool = False  # sampling starts from images
  previews: bool = False  # images are decoded while the steps are taken


class Choice(NamedTuple):
  """Where nets wait, and how images are decoded."""

  offloaded: tuple[tuple[str, ...], ...]  # of each model, names of its nets
  tile: int | None = None  # px; None: as the workload has it
  placed: placement.Placement | None = None  # None: there is no limit
  notes: tuple[str, ...] = ()  # a line for the user, where there is a choice


class Machine(NamedTuple):
  """The memory that a process has."""

  name: str  # of its devices
  platform: str  # 'gpu', 'tpu' or 'cpu'
  devices: int  # of this host
  device_bytes: int | None  # that are free on each; None: no limit
  host_bytes: int | None  # that are free; None: no limit


def measure(mesh: jax.sharding.Mesh | None) -> Machine:
  """Measures the free memory of this process.

  Args:
    mesh: of the devices; None: the first local one.
  """
  devices = jax.local_devices()[:1] if mesh is None else mesh.local_devices
  return Machine(
    devices[0].device_kind,
    devices[0].platform,
    len(devices),
    free_memory.on_devices(devices),
    free_memory.on_host(),
  )


def choose(
  models: Sequence[sdxl.SDXL], workload: Workload, machine: Machine
) -> Choice:
  """Chooses the nets that wait in host memory, as few as the memory allows.

  Where no choice fits, decoding is tried in tiles, which takes longer.

  Args:
    models: the base and, if there is one, the refiner.
    workload: the largest that is to be sampled.
    machine: with its free memory.

  Raises:
    ValueError: if nothing fits, with the bytes, the limit and what to do.
  """
  if machine.device_bytes is None:
    return Choice(((),) * len(models))
  device, host = int((1 - HEADROOM) * machine.device_bytes), machine.host_bytes
  if host is not None:
    host = max(0, host - HOST_RESERVE)
  nets = list_nets(models, machine.devices)
  unplaced = placement.place(
    nets, list_phases(models, workload, machine.platform), ()
  )
  for tile in tiles_to_try(models[0], workload):
    tiled = dataclasses.replace(workload, tile=tile)
    phases = list_phases(models, tiled, machine.platform)
    try:
      placed = placement.choose(nets, phases, device, host)
      break
    except placement.NothingFitsError as error:
      reason = str(error)
  else:
    raise ValueError(
      f'{reason}: pass {remedies(models, workload)}; or, to try in spite of '
      f'this estimate for {machine.name}, offload true or false'
    )
  tile = tile if tile != workload.tile else None
  offloaded = tuple(
    tuple(n for n in model.configs if prefix(i) + n in placed.offloaded)
    for i, model in enumerate(models)
  )
  lines = ()
  if placed.offloaded or tile:
    lines = (describe(machine, unplaced, placed, tile),)
  return Choice(offloaded, tile, placed, lines)


def prefix(index: int) -> str:
  """Returns what comes before the names of the nets of a model."""
  return 'refiner ' if index else ''


def list_nets(models: Sequence[sdxl.SDXL], devices: int) -> list[placement.Net]:
  """Lists the nets of all models, each of which every device has a copy of."""
  nets = []
  for i, model in enumerate(models):
    for name, config in model.configs.items():
      count = count_bytes(config)
      nets.append(placement.Net(prefix(i) + name, count, devices * count))
  return nets


def count_bytes(config: pretrained.NetConfig) -> int:
  """Returns the bytes of a net's parameters."""
  leaves = jax.tree.leaves(net_shapes.abstract_params(config))
  return sum(x.size * np.dtype(x.dtype).itemsize for x in leaves)


def list_phases(
  models: Sequence[sdxl.SDXL], workload: Workload, platform: str
) -> list[placement.Phase]:
  """Lists the programs of `generate`, with the memory that they take."""
  height, width = (s // models[0].vae.downscale for s in workload.size)
  size = height, width
  rows = workload.batch * workload.branches
  words = workload.chunks * chunking.LENGTH
  vae_net = [n for n in ('vae',) if n in models[0].configs]
  texts, steps, previews = [], [], []
  decoding = memory_estimate.decoding(models[0], size, workload.tile, platform)
  for i, model in enumerate(models):
    encoders = [prefix(i) + n for n in TEXT_ENCODERS if n in model.configs]
    takers = ['unet', *filter(sdxl.is_controlnet, model.configs)]
    takers = [prefix(i) + name for name in takers]
    texts.append((f'{prefix(i)}text', encoders, memory_estimate.TEXT))
    peak = memory_estimate.steps(model, rows, size, words, platform)
    steps.append((f'{prefix(i)}steps', takers, peak))
    nets = [*takers, *vae_net]
    previews.append((f'{prefix(i)}previews', nets, decoding))
  phases = [*texts, *steps, ('decoding', vae_net, decoding)]
  if workload.encodes:
    peak = memory_estimate.encoding(models[0], size, platform)
    phases.append(('encoding', vae_net, peak))
  if workload.previews:
    phases += previews
  return [
    placement.Phase(name, tuple(nets), peak) for name, nets, peak in phases
  ]


def tiles_to_try(
  model: sdxl.SDXL, workload: Workload
) -> tuple[int | None, ...]:
  """Returns the sides of tiles to decode in, the preferred one first."""
  if workload.tile is None and isinstance(model.vae, vae.VAEConfig):
    return None, TILE
  return (workload.tile,)


def remedies(models: Sequence[sdxl.SDXL], workload: Workload) -> str:
  """Returns what to do where nothing fits."""
  height, width = workload.size
  found = [f'a smaller size than {height} x {width} px']
  if workload.batch > 1:
    found.insert(0, f'a smaller batch than {workload.batch}')
  if models[0].unet.dtype == 'float32':
    found.insert(0, 'dtype auto')
  if len(models) > 1:
    found.append('no refiner')
  if models[0].controlnets:
    found.append('fewer ControlNets')
  return placement.join(found, 'or')


def describe(
  machine: Machine,
  unplaced: placement.Placement,
  placed: placement.Placement,
  tile: int | None,
) -> str:
  """Returns the line on what was chosen, with the numbers behind it."""
  gib, chosen = placement.gib, []
  if placed.offloaded:
    chosen.append(
      f'offloading {placement.join(placed.offloaded)} to host memory '
      f'({gib(placed.host_bytes)} GiB)'
    )
  if tile:
    chosen.append(f'decoding in tiles of {tile} px')
  return (
    f'{machine.name} has {gib(machine.device_bytes)} GiB free, and '
    f'{unplaced.worst} with all nets there takes {gib(unplaced.device_bytes)}: '
    f'{" and ".join(chosen)}, which takes at most '
    f'{gib(placed.device_bytes)} (estimated)'
  )
