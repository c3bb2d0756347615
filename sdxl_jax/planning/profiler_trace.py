"""Reads what `jax.profiler.trace` writes: the time of each instruction.

A folder has an XSpace (tsl/profiler/protobuf/xplane.proto in openxla/xla) with
the compiled programs, and with an event for each instruction that ran, on a CPU
or a GPU. Events of several devices are averaged.
"""

import collections
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from sdxl_jax.planning import hlo, hlo_proto, hlo_traffic, protobuf_fields

message, text = protobuf_fields.message, protobuf_fields.text
integer = protobuf_fields.integer
METADATA_PLANE = '/host:metadata'


class Event(NamedTuple):
  """An instruction that ran once."""

  program: int | str | None  # id, or name where the event has no id
  instruction: str | None
  seconds: float


class Timed(NamedTuple):
  """A program that ran while the profiler was on."""

  name: str
  program: hlo.Program
  runs: int  # of the program, on all devices
  seconds: dict[str, float]  # {instruction: of one run}


class Recording(NamedTuple):
  """What a profile has."""

  platform: str  # 'gpu' or 'cpu'
  programs: list[Timed]  # those that took longest first
  unknown: float  # seconds of the devices in what belongs to no program


def read(folder: str | os.PathLike) -> Recording:
  """Reads the newest profile in a folder.

  Args:
    folder: that was given to jax.profiler.trace, or an .xplane.pb file.

  Raises:
    FileNotFoundError: if there is no profile.
    ValueError: if it has no event of a program, or is cut off.
  """
  path = newest(pathlib.Path(folder))
  try:
    planes = [message(p) for p in message(memoryview(path.read_bytes()))[1]]
  except ValueError as error:
    raise ValueError(f'{path} is no profile of JAX: {error}') from error
  protos = {}
  for plane in planes:
    if text(plane[2]) == METADATA_PLANE:
      protos |= programs_of(plane)
  platform = 'gpu'
  events = [e for p in planes if is_device(p) for e in events_of(p, 'Stream')]
  if not any(e.instruction for e in events):
    platform = 'cpu'
    host = [p for p in planes if text(p[2]).startswith('/host:CPU')]
    events = [e for p in host for e in events_of(p, '') if e.instruction]
  timed, unknown = attribute(events, protos)
  if not timed:
    raise ValueError(
      f'{path} has no event of a compiled program on a CPU or GPU: trace steps '
      'that run while the profiler is on'
    )
  return Recording(platform, timed, unknown)


def newest(folder: pathlib.Path) -> pathlib.Path:
  """Returns the file of the newest profile in a folder."""
  if folder.is_file():
    return folder
  found = sorted(folder.rglob('*.xplane.pb'), key=lambda p: p.stat().st_mtime)
  if not found:
    raise FileNotFoundError(
      f'{folder} has no *.xplane.pb, which jax.profiler.trace writes'
    )
  return found[-1]


def is_device(plane: dict[int, list[protobuf_fields.Value]]) -> bool:
  """Returns whether a plane has the events of a GPU."""
  return text(plane[2]).startswith('/device:GPU')


def entries(values: list[protobuf_fields.Value]) -> Iterator[tuple[int, Any]]:
  """Yields (key, fields of the message) of a map."""
  for value in values:
    entry = message(value)
    yield integer(entry[1]), message(entry[2][-1])


def programs_of(
  plane: dict[int, list[protobuf_fields.Value]],
) -> dict[int, tuple[str, memoryview]]:
  """Returns {id: (name, HloProto)} of a plane of metadata."""
  names = {key: text(fields[2]) for key, fields in entries(plane[5])}
  found = {}
  for _, fields in entries(plane[4]):
    stats = {names.get(integer(s[1])): s for s in map(message, fields[5])}
    if 'Hlo Proto' in stats and 'program_id' in stats:
      program = stat_value(stats['program_id'], names)
      found[program] = text(fields[2]), stats['Hlo Proto'][6][-1]
  return found


def events_of(
  plane: dict[int, list[protobuf_fields.Value]], prefix: str
) -> Iterator[Event]:
  """Yields the events of a plane, of lines whose name begins with a prefix."""
  names = {key: text(fields[2]) for key, fields in entries(plane[5])}
  keys = {name: key for key, name in names.items()}
  wanted = [keys.get(key) for key in ('hlo_op', 'hlo_module', 'program_id')]
  for line in map(message, plane[3]):
    if not text(line[2]).startswith(prefix):
      continue
    for event in map(message, line[4]):
      stats = {integer(s[1]): s for s in map(message, event[4])}
      op, module, program = (
        stat_value(stats[key], names) if key in stats else None
        for key in wanted
      )
      seconds = integer(event[3]) * 1e-12
      yield Event(module if program is None else program, op, seconds)


def stat_value(
  stat: dict[int, list[protobuf_fields.Value]], names: dict[int, str]
) -> int | str:
  """Returns the integer or text of an XStat."""
  if stat[7]:
    return names[integer(stat[7])]
  if stat[5]:
    return text(stat[5])
  return integer(stat[3] or stat[4])


def attribute(
  events: list[Event], protos: dict[int, tuple[str, memoryview]]
) -> tuple[list[Timed], float]:
  """Returns the programs, and the seconds of events that belong to none."""
  by_name = {name.partition('(')[0]: key for key, (name, _) in protos.items()}
  durations = collections.defaultdict(lambda: collections.defaultdict(list))
  unknown = 0.0
  for event in events:
    key = by_name.get(event.program, event.program)
    if key in protos and event.instruction:
      durations[key][event.instruction].append(event.seconds)
    else:
      unknown += event.seconds
  timed = []
  for key, seconds in durations.items():
    name, proto = protos[key]
    timed.append(time_program(name, hlo_proto.program(proto), seconds))
  timed.sort(key=lambda t: -t.runs * sum(t.seconds.values()))
  return timed, unknown


def time_program(
  name: str, program: hlo.Program, durations: dict[str, list[float]]
) -> Timed:
  """Returns the Timed of a program, given the seconds of all its events.

  It ran as often as most of what its entry executes. A loop's own event is as
  long as those inside of it, which are counted instead.
  """
  steering = {
    i.name
    for instructions in program.computations.values()
    for i in instructions.values()
    if i.opcode in hlo_traffic.FREE
  }
  durations = {n: d for n, d in durations.items() if n not in steering}
  entry = program.computations[program.entry]
  counts = [len(d) for n, d in durations.items() if n in entry]
  counts = counts or [len(d) for d in durations.values()] or [1]
  runs = collections.Counter(counts).most_common(1)[0][0]
  return Timed(
    name, program, runs, {n: sum(d) / runs for n, d in durations.items()}
  )
