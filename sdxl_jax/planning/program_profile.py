"""Profiles a compiled program: where its estimated time goes.

Each instruction gets the time that `Machine.seconds` counts for it. On TPUs
these add up to the time of the program. On GPUs that is the larger of all FLOPs
and all traffic, but each instruction waits for the larger of its own: the times
of the instructions are scaled to the whole.
"""

import collections
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sdxl_jax.planning import (
  chips,
  cost,
  hlo,
  hlo_flops,
  hlo_kinds,
  hlo_traffic,
  hlo_trip_counts,
  instruction_sites,
  kernels,
  machines,
  op_names,
)

# Of a device whose speed is not known, as a CPU: ten FLOPs for each byte, by
# which shares can be compared.
NOMINAL = chips.Chip('nominal', flops=100e9, bandwidth=10e9, link=10e9)


class Part(NamedTuple):
  """An instruction of a program."""

  name: str
  kind: str  # one of hlo_kinds.KINDS
  site: op_names.Site
  seconds: float  # of all runs, on one device
  runs: int


class Profile(NamedTuple):
  """Where the time of a program goes."""

  name: str
  parts: list[Part]  # in the order of execution
  seconds: float | None  # their sum; None where the speed is not known
  scale: float = 1.0  # by which the parts were multiplied

  @property
  def total(self) -> float:
    """Seconds of all parts; of a nominal device where no speed is known."""
    return math.fsum(part.seconds for part in self.parts)

  def repeated(self, times: float) -> 'Profile':
    """Returns the profile of so many runs of the program."""
    parts = [p._replace(seconds=p.seconds * times) for p in self.parts]
    seconds = None if self.seconds is None else self.seconds * times
    return self._replace(parts=parts, seconds=seconds)

  def preceded_by(self, kind: str, seconds: float) -> 'Profile':
    """Returns the profile with another part in front."""
    if not seconds:
      return self
    part = Part(kind, kind, op_names.UNKNOWN, seconds, 1)
    total = None if self.seconds is None else self.seconds + seconds
    return self._replace(parts=[part, *self.parts], seconds=total)

  def grouped(self, key: Callable[[Part], str]) -> dict[str, 'Share']:
    """Returns {key of a part: Share of the time}, the largest first."""
    seconds = collections.defaultdict(collections.Counter)
    for part in self.parts:
      seconds[key(part)][part.site.phase] += part.seconds
    total = self.total
    shares = {
      name: Share(
        phases.total() / total, {p: phases[p] / total for p in phases}
      )
      for name, phases in seconds.items()
    }
    return dict(sorted(shares.items(), key=lambda item: -item[1].whole))


class Share(NamedTuple):
  """Parts of a profile, as a fraction of its time."""

  whole: float
  phases: dict[str, float]  # {one of op_names.PASSES: fraction of the time}


def profile(
  machine: machines.Machine,
  name: str,
  text: str,
  jaxpr: cost.Jaxpr,
  dtype: str = 'bfloat16',
) -> Profile:
  """Profiles a program.

  Args:
    machine: that the program is compiled for.
    name: of the program, for the user.
    text: of the compiled program.
    jaxpr: of the same program.
    dtype: of its matmuls, which on GPUs decides their peak.

  Raises:
    ValueError: if a loop has an unknown trip count, or the text is not HLO.
  """
  found = parts(
    Speed(machine.platform, machine.chip, dtype, cost.kernel_flops(jaxpr)),
    hlo.parse(text),
  )
  return scaled(
    Profile(name, list(found), None), machine.seconds(text, jaxpr, dtype)
  )


def joined(name: str, profiles: Sequence[Profile]) -> Profile:
  """Returns the profile of programs that run one after another."""
  known = all(profile.seconds is not None for profile in profiles)
  parts = [part for profile in profiles for part in profile.parts]
  estimated = sum(profile.total / profile.scale for profile in profiles)
  total = sum(profile.total for profile in profiles)
  return Profile(
    name,
    parts,
    sum(profile.seconds for profile in profiles) if known else None,
    total / estimated if estimated else 1.0,
  )


def scaled(found: Profile, seconds: float | None) -> Profile:
  """Returns a profile whose parts add up to `seconds`, if that is known."""
  if seconds is None or not (total := found.total):
    return found
  factor = seconds / total
  parts = [p._replace(seconds=p.seconds * factor) for p in found.parts]
  return Profile(found.name, parts, seconds, factor)


class Speed(NamedTuple):
  """What decides the time of an instruction."""

  platform: str
  chip: chips.Chip
  dtype: str | None  # of products; None: that of their results
  kernel_flops: Mapping[kernels.Call, int]  # of Pallas kernels, each run

  def times(
    self, program: hlo.Program, computation: str, i: hlo.Instruction
  ) -> dict[str, float]:
    """Returns {kind: seconds} of one run; None: the kind of the instruction.

    As Machine.seconds, for a single instruction.
    """
    chip = self.chip if self.chip.flops else NOMINAL
    received = sum(
      collective.received
      for collective in hlo_traffic.collectives_of(program, computation, i)
    )
    transfer = received / chip.link if received else 0.0
    flops = 0
    if kernels.is_kernel(i):
      call = kernels.call_of(program, computation, i)
      flops = kernels.flops_of_call(call, self.kernel_flops)
    if self.platform == 'tpu' and self.chip.flops:
      own = cost.estimated_cycles(i) / chip.clock
      own += flops / (machines.ATTENTION_PEAK_SHARE * chip.flops)
    else:
      own = self._roofline(program, computation, i, chip, flops)
    return {None: own, hlo_kinds.COLLECTIVES: transfer}

  def _roofline(self, program, computation, i, chip, kernel_flops):
    """Returns the larger of the times of FLOPs and of traffic."""
    flops = kernel_flops + hlo_flops.flops(program, computation, i)
    traffic = hlo_traffic.bytes_read(program, computation, i)
    traffic += hlo_traffic.bytes_written(program, computation, i)
    dtype = self.dtype or ('float32' if 'f32' in i.shape else 'bfloat16')
    peak = machines.GPU_SHARE * chip.peak(dtype)
    return max(flops / peak, traffic / chip.bandwidth)


def parts(speed: Speed, program: hlo.Program) -> Iterator[Part]:
  """Yields the parts of a program that take time, as executed.

  Raises:
    ValueError: if a loop has an unknown trip count.
  """
  places = instruction_sites.Places(program)
  for computation, i, runs in hlo_trip_counts.top_level(program):
    place = places.find(computation, i)
    for kind, seconds in speed.times(program, computation, i).items():
      if seconds:
        yield Part(i.name, kind or place.kind, place.site, runs * seconds, runs)
