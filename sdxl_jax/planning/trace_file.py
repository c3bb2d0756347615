"""Writes profiles as a trace that Perfetto and chrome://tracing open.

The format is Chrome's "Trace Event Format". All devices run the same program,
so that one track stands for each of them. Durations are estimates. A loop is
drawn once, each of its instructions as long as all of its runs, whose number is
in its arguments.
"""

import gzip
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from sdxl_jax.planning.program_profile import Part, Profile


def write(
  path: str | os.PathLike, profiles: Sequence[Profile], device: str
) -> None:
  """Writes the programs of profiles, one after another.

  Args:
    path: a .json file, or .json.gz.
    profiles: of the programs, in the order in which they run.
    device: what the track is named.
  """
  content = json.dumps({'traceEvents': list(events(profiles, device))})
  path = pathlib.Path(path)
  if path.suffix == '.gz':
    path.write_bytes(gzip.compress(content.encode()))
  else:
    path.write_text(content)


def events(
  profiles: Sequence[Profile], device: str
) -> Iterator[dict[str, Any]]:
  """Yields the events of a trace."""
  yield {'ph': 'M', 'name': 'process_name', 'pid': 1, 'args': {'name': device}}
  start = 0.0
  for profile in profiles:
    end = start
    timed = []
    for part in profile.parts:
      timed.append((end, end + part.seconds, part))
      end += part.seconds
    yield event(profile.name, start, end, {})
    yield from nested(timed, 0)
    start = end


# A part, and the seconds at which it starts and ends.
Timed = tuple[float, float, Part]


def nested(timed: Sequence[Timed], depth: int) -> Iterator[dict[str, Any]]:
  """Yields the modules of a path from a depth on, and the parts in them."""
  for module, group in itertools.groupby(timed, lambda t: at(t[2], depth)):
    group = list(group)
    if module is None:
      for start, end, part in group:
        arguments = {'runs': part.runs, 'kind': part.kind}
        yield event(part.name, start, end, arguments)
    else:
      yield event(module, group[0][0], group[-1][1], {})
      yield from nested(group, depth + 1)


def at(part: Part, depth: int) -> str | None:
  """Returns what encloses a part at a depth: its pass, then its modules."""
  levels = (part.site.phase, *(part.site.path or (part.site.block,)))
  return levels[depth] if depth < len(levels) else None


def event(
  name: str, start: float, end: float, arguments: dict[str, Any]
) -> dict[str, Any]:
  """Returns a complete event; times are rounded to ns, so that they nest."""
  begin = round(start * 1e9)
  return {
    'ph': 'X',
    'name': name,
    'pid': 1,
    'tid': 1,
    'ts': begin / 1e3,
    'dur': (round(end * 1e9) - begin) / 1e3,
    'args': arguments,
  }
