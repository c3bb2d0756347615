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

  program: int | None  # its id
  module: str | None  # its name
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
  for key, fields in entries(plane[4]):
    stats = {names.get(integer(s[1])): s for s in map(message, fields[5])}
    if 'Hlo Proto' in stats:
      # Older versions of JAX have no statistic of the id: it is the key.
      number = stats.get('program_id')
      number = key if number is None else stat_value(number, names)
      found[number] = text(fields[2]), stats['Hlo Proto'][6][-1]
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
      yield Event(program, module, op, seconds)


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
  durations = collections.defaultdict(lambda: collections.defaultdict(list))
  for event in events:
    key = event.program, event.module
    durations[key][event.instruction].append(event.seconds)
  timed, unknown = [], 0.0
  programs = {}
  for (number, module), seconds in durations.items():
    unknown += sum(seconds.pop(None, ()))
    alike = [n for n, (name, _) in protos.items() if is_named(name, module)]
    # A program that was read from a cache has another id in its events.
    alike = [number] if number in alike else alike
    for n in alike:
      programs[n] = programs.get(n) or hlo_proto.program(protos[n][1])
    found = max(
      alike,
      key=lambda n: len(names_of(programs[n]) & set(seconds)),
      default=None,
    )
    if found is None:
      unknown += sum(map(sum, seconds.values()))
    elif seconds:
      name = protos[found][0]
      timed.append(time_program(name, programs[found], seconds))
  timed.sort(key=lambda t: -t.runs * sum(t.seconds.values()))
  return timed, unknown


def is_named(name: str, module: str | None) -> bool:
  """Returns whether a program, as 'jit_step(7)', has the name of a module."""
  return module is not None and name.rpartition('(')[0] == module


def names_of(program: hlo.Program) -> set[str]:
  """Returns the names of all instructions of a program."""
  return {n for found in program.computations.values() for n in found}


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
