"""Compares a profile that JAX recorded with the estimate of its programs.

Both have the same kinds, blocks and layers. A recording does not have the
products inside a Pallas kernel, so that its estimate is its traffic.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from sdxl_jax.planning import (
  chips,
  hlo_kinds,
  instruction_sites,
  op_names,
  profile_report,
  profiler_trace,
  program_profile,
  report,
)
from sdxl_jax.planning.program_profile import Part, Profile

# Programs with less of the time are left out.
SMALLEST_SHARE = 0.02
NO_PLACE = instruction_sites.Place(hlo_kinds.OTHERS, op_names.UNKNOWN)


class Compared(NamedTuple):
  """A program by the clock and by the estimate."""

  runs: int
  clock: Profile  # of one run
  estimate: Profile | None  # None where a loop's trip count is not known
  is_nominal: bool  # whether only shares of the estimate can be compared


def compare(
  recording: profiler_trace.Recording, chip: chips.Chip | None
) -> list[Compared]:
  """Returns the programs of a recording that took time.

  Args:
    recording: of a GPU or CPU.
    chip: its device; None: not known.
  """
  totals = [t.runs * sum(t.seconds.values()) for t in recording.programs]
  return [
    Compared(
      timed.runs,
      clock_profile(timed),
      estimate(timed, recording.platform, chip),
      is_nominal=chip is None,
    )
    for timed, total in zip(recording.programs, totals)
    if total >= SMALLEST_SHARE * sum(totals)
  ]


def clock_profile(timed: profiler_trace.Timed) -> Profile:
  """Returns the profile of a program by the clock, of one run."""
  places = instruction_sites.Places(timed.program)
  found = {
    name: places.find(computation, i)
    for computation, instructions in timed.program.computations.items()
    for name, i in instructions.items()
    if name in timed.seconds
  }
  parts = []
  for name, seconds in timed.seconds.items():
    kind, site = found.get(name, NO_PLACE)
    parts.append(Part(name, kind, site, seconds, 1))
  return Profile(timed.name, parts, sum(timed.seconds.values()))


def estimate(
  timed: profiler_trace.Timed, platform: str, chip: chips.Chip | None
) -> Profile | None:
  """Returns the estimate of a program, None if it cannot be counted."""
  chip = chip or program_profile.NOMINAL
  speed = program_profile.Speed(platform, chip, None, {})
  try:
    parts = list(program_profile.parts(speed, timed.program))
  except ValueError:
    return None
  return Profile(timed.name, parts, sum(part.seconds for part in parts))


class Row(NamedTuple):
  """What one kind, block or layer took; None without an estimate."""

  name: str
  clock: float  # seconds
  share: float
  estimate: float | None  # seconds
  estimated_share: float | None


def rows(found: Compared, key: Callable[[Part], str]) -> list[Row]:
  """Returns the rows of a table, the largest by the clock first."""
  clock = found.clock.grouped(key)
  estimated = found.estimate.grouped(key) if found.estimate else {}
  total = found.estimate.total if found.estimate else None
  names = [*clock, *(name for name in estimated if name not in clock)]
  table = []
  for name in names:
    share = clock[name].whole if name in clock else 0.0
    other = estimated[name].whole if name in estimated else 0.0
    is_known = total is not None
    table.append(
      Row(
        name,
        share * found.clock.total,
        share,
        other * total if is_known and not found.is_nominal else None,
        other if is_known else None,
      )
    )
  return table


def columns(title: str, found: Compared) -> list[report.Column]:
  """Returns the columns of a table of Row."""
  made = [
    report.Column(title, lambda row: row.name),
    report.Column('clock ms', lambda row: f'{row.clock * 1e3:.2f}'),
    report.Column('share', lambda row: profile_report.percent(row.share)),
  ]
  if found.estimate is None:
    return made
  if not found.is_nominal:
    made.append(
      report.Column('estimate ms', lambda row: f'{row.estimate * 1e3:.2f}')
    )
  made.append(
    report.Column(
      'estimated share', lambda row: profile_report.percent(row.estimated_share)
    )
  )
  return made


def to_text(
  recording: profiler_trace.Recording, programs: list[Compared]
) -> str:
  """Formats a comparison as the command prints it."""
  lines = []
  for found in programs:
    lines.append(
      f'{found.clock.name}: {found.runs} runs, each '
      f'{found.clock.total * 1e3:.4g} ms in instructions by the clock'
    )
    for title, key in profile_report.TABLES.items():
      table = rows(found, key)[: profile_report.MOST_ROWS]
      lines.append(report.table(columns(title, found), table))
    lines.append(describe_estimate(found, recording.platform))
  if recording.unknown:
    lines.append(
      f'{recording.unknown * 1e3:.4g} ms of all events belong to no '
      'instruction of these programs'
    )
  return '\n'.join(lines)


def describe_estimate(found: Compared, platform: str) -> str:
  """Returns the line on how the estimate was made."""
  if found.estimate is None:
    return 'no estimate: the trip count of a loop is not in the program'
  if found.is_nominal:
    return f'estimate: {profile_report.METHOD["unknown"]}'
  ratio = found.estimate.total / found.clock.total
  return (
    f'estimate: {profile_report.ROOFLINE}; all in all '
    f'{ratio:.2f} of the time by the clock'
  )


def to_json(
  recording: profiler_trace.Recording, programs: list[Compared]
) -> dict[str, Any]:
  """Returns the figures of a comparison under the keys of --json."""
  found = []
  for program in programs:
    tables = {
      f'{title}s': [row._asdict() for row in rows(program, key)]
      for title, key in profile_report.TABLES.items()
    }
    found.append(
      {
        'program': program.clock.name,
        'runs': program.runs,
        'clock': program.clock.total,
        **tables,
      }
    )
  return {'programs': found, 'unknown': recording.unknown}
