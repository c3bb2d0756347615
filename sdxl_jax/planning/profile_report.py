"""Reports a profile: tables of its kinds, blocks and layers, and JSON."""

import dataclasses
from collections.abc import Callable
from typing import Any

from sdxl_jax.planning import machines, op_names, report
from sdxl_jax.planning.program_profile import Part, Profile, Share

# By what the time is shared out: {title of a table: key of a part}.
TABLES: dict[str, Callable[[Part], str]] = {
  'kind': lambda part: part.kind,
  'block': lambda part: part.site.block,
  'layer': lambda part: part.site.layer,
}
MOST_ROWS = 14  # of a table on the terminal
ROOFLINE = (
  f'FLOPs of each instruction at {machines.GPU_SHARE} of the peak or its '
  'memory traffic at full bandwidth, whichever takes longer'
)
METHOD = {
  'tpu': 'the cycles that the TPU compiler estimates, kernels at '
  f'{machines.ATTENTION_PEAK_SHARE} of the peak, collectives over the links',
  'gpu': ROOFLINE + '; together that is {ratio:.2f} times the seconds of the '
  'plan, to which all is scaled',
  'unknown': 'FLOPs of each instruction or its memory traffic at 10 FLOPs per '
  'byte, whichever takes longer; the speed of this machine is not known',
}


def to_text(profile: Profile, platform: str) -> str:
  """Formats a profile as the command prints it."""
  phases = phases_of(profile)
  seconds = f': {profile.seconds:.4g} s' if profile.seconds else ''
  lines = [f'profile of {profile.name}{seconds}']
  for title, key in TABLES.items():
    lines.append(report.table(columns(title, phases), rows(profile, key)))
  lines.append(f'shares of the estimated time: {method(profile, platform)}')
  return '\n'.join(lines)


def method(profile: Profile, platform: str) -> str:
  """Describes how the times of the instructions were estimated."""
  if profile.seconds is None:
    return METHOD['unknown']
  # Of a CPU whose speed is known, the same as of a GPU.
  text = METHOD['tpu' if platform == 'tpu' else 'gpu']
  return text.format(ratio=1 / profile.scale)


def phases_of(profile: Profile) -> list[str]:
  """Returns the passes that a profile has, in their order."""
  found = {part.site.phase for part in profile.parts}
  return [phase for phase in op_names.PASSES if phase in found]


def columns(title: str, phases: list[str]) -> list[report.Column]:
  """Returns the columns of a table of (name, Share)."""

  def of_phase(phase):
    return lambda row: percent(row[1].phases.get(phase, 0.0))

  found = [
    report.Column(title, lambda row: row[0]),
    report.Column('share', lambda row: percent(row[1].whole)),
  ]
  if len(phases) > 1:
    found += [report.Column(phase, of_phase(phase)) for phase in phases]
  return found


def percent(share: float) -> str:
  """Formats a fraction."""
  return f'{share:.1%}' if share else '-'


def rows(
  profile: Profile, key: Callable[[Part], str]
) -> list[tuple[str, Share]]:
  """Returns (name, Share) of the largest rows, the others as one."""
  shares = list(profile.grouped(key).items())
  if len(shares) <= MOST_ROWS:
    return shares
  rest = [share for _, share in shares[MOST_ROWS - 1 :]]
  phases = {
    phase: sum(share.phases.get(phase, 0.0) for share in rest)
    for phase in op_names.PASSES
  }
  whole = sum(share.whole for share in rest)
  last = f'{len(rest)} more', Share(whole, phases)
  return [*shares[: MOST_ROWS - 1], last]


def figures(cost: Any, platform: str) -> dict[str, Any]:
  """Returns the fields of a dataclass, with the figures of its profile."""
  fields = dataclasses.asdict(dataclasses.replace(cost, profile=None))
  del fields['profile']
  if cost.profile is not None:
    fields['profile'] = to_json(cost.profile, platform)
  return fields


def to_json(profile: Profile, platform: str) -> dict[str, Any]:
  """Returns the figures of a profile under the keys of --json."""
  keys = TABLES | {'module': lambda p: f'{p.site.block}: {p.site.layer}'}
  found = {
    'program': profile.name,
    'seconds': profile.seconds,
    'method': method(profile, platform),
  }
  for title, key in keys.items():
    found[f'{title}s'] = {
      name: {'share': share.whole} | share.phases
      for name, share in profile.grouped(key).items()
    }
  return found
