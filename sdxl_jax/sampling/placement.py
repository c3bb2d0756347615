"""Chooses which nets stay on the device, and which wait in host memory.

The phases of sampling (text encoding, steps, decoding) follow one another. A
net in host memory is copied to the device for each phase that runs it, so that
the device holds at any time the nets that stay there, the nets of the phase,
and the phase's own arrays.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple


class Net(NamedTuple):
  """The parameters of a net."""

  name: str
  device_bytes: int  # on each device
  host_bytes: int  # in host memory, where each device has a copy of its own


class Phase(NamedTuple):
  """A program of sampling."""

  name: str
  nets: tuple[str, ...]  # that it runs
  peak: int  # bytes on each device beside parameters


class Placement(NamedTuple):
  """Where nets are between the phases that run them."""

  offloaded: tuple[str, ...]  # in host memory; the others stay on the device
  worst: str  # name of the phase that takes the most device memory
  device_bytes: int  # in that phase, on each device
  host_bytes: int  # of what is offloaded
  moved_bytes: int  # copied to each device in one run of all phases


class NothingFitsError(ValueError):
  """No placement fits the memory of device and host."""


def place(
  nets: Sequence[Net], phases: Sequence[Phase], offloaded: Collection[str]
) -> Placement:
  """Returns the Placement with some nets offloaded.

  Args:
    nets: of all models.
    phases: of one run, at least one.
    offloaded: names of nets.
  """
  sizes = {net.name: net for net in nets}
  resident = sum(n.device_bytes for n in nets if n.name not in offloaded)
  fetched = {
    phase.name: sum(
      sizes[name].device_bytes for name in phase.nets if name in offloaded
    )
    for phase in phases
  }
  needs = {p.name: resident + fetched[p.name] + p.peak for p in phases}
  worst = max(needs, key=lambda name: needs[name])
  return Placement(
    offloaded=tuple(n.name for n in nets if n.name in offloaded),
    worst=worst,
    device_bytes=needs[worst],
    host_bytes=sum(n.host_bytes for n in nets if n.name in offloaded),
    moved_bytes=sum(fetched.values()),
  )


def choose(
  nets: Sequence[Net],
  phases: Sequence[Phase],
  device: int | None,
  host: int | None = None,
) -> Placement:
  """Returns the placement that fits and copies the least to the device.

  Args:
    nets: of all models.
    phases: of one run.
    device: bytes on each device for parameters and phases; None: no limit, and
      nothing is offloaded.
    host: bytes of host memory for nets; None: no limit.

  Raises:
    NothingFitsError: if no placement fits, with the bytes and the limit.
  """
  placements = [place(nets, phases, names) for names in subsets(nets)]
  if device is None:
    return placements[0]
  on_device = [p for p in placements if p.device_bytes <= device]
  if not on_device:
    least = min(placements, key=lambda p: p.device_bytes)
    raise NothingFitsError(
      f'{least.worst} takes {gib(least.device_bytes)} GiB of device memory '
      f'even with all idle nets in host memory, and {gib(device)} GiB are free'
    )
  fitting = [p for p in on_device if host is None or p.host_bytes <= host]
  if not fitting:
    least = min(on_device, key=lambda p: p.host_bytes)
    raise NothingFitsError(
      f'{placements[0].worst} takes {gib(placements[0].device_bytes)} GiB of '
      f'device memory with all nets there, where {gib(device)} GiB are free, '
      f'and to offload {join(least.offloaded)} takes '
      f'{gib(least.host_bytes)} GiB of host memory, where {gib(host)} GiB are '
      'free'
    )
  # Of equal ones the first, which offloads the fewest nets.
  return min(fitting, key=lambda p: (p.moved_bytes, p.host_bytes))


def subsets(nets: Sequence[Net]) -> Iterator[tuple[str, ...]]:
  """Yields the names of each subset of some nets, the smallest first."""
  names = [net.name for net in nets]
  for size in range(len(names) + 1):
    yield from itertools.combinations(names, size)


def gib(count: int | float) -> str:
  """Returns bytes as GiB with one digit after the point."""
  return f'{count / 2**30:.1f}'


def join(names: Sequence[str], word: str = 'and') -> str:
  """Joins names as a sentence has them."""
  *first, last = names
  return f'{", ".join(first)} {word} {last}' if first else last
