"""ControlNets as the command names them, and their control images.

  --controlnet PATH[:SCALE[:START:END]] --control [TYPE=]FILE

Both are repeated for several, and belong together by their order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdxl_jax.models import sdxl

# Types of controlnet-union-sdxl-1.0 (xinsir, ControlNetPlus), by its numbers.
TYPES = {
  'openpose': 0,
  'depth': 1,
  'softedge': 2,
  'hed': 2,
  'pidi': 2,
  'scribble': 2,
  'ted': 2,
  'canny': 3,
  'lineart': 3,
  'mlsd': 3,
  'normal': 4,
  'segment': 5,
  'tile': 6,
  'repaint': 7,
}


class ControlSpec(NamedTuple):
  """One use of a ControlNet: with one control image.

  Attributes:
    path: folder or file of the ControlNet.
    scale: of its residuals.
    start, end: shares of the steps between which it acts.
  """

  path: str
  scale: float = 1.0
  start: float = 0.0
  end: float = 1.0


class Use(NamedTuple):
  """One call of a ControlNet at each step.

  Attributes:
    net: its name in SDXL.
    places: indices of its specs; a union net may have several.
  """

  net: str
  places: tuple[int, ...]


def parse(text: str) -> ControlSpec:
  """Parses 'PATH[:SCALE[:START:END]]'.

  Raises:
    ValueError: for numbers that are too few, or out of range.
  """
  path, numbers = str(text), []
  while len(numbers) < 3:
    rest, colon, last = path.rpartition(':')
    number = to_number(last)
    if not (colon and rest) or number is None:
      break
    path, numbers = rest, [number, *numbers]
  if len(numbers) == 2:
    raise ValueError(
      f'controlnet {text}: two numbers stand behind the path; write '
      'PATH:SCALE, or PATH:SCALE:START:END, as union:0.8:0:0.5'
    )
  spec = ControlSpec(path, *numbers)
  if not math.isfinite(spec.scale):
    raise ValueError(
      f'controlnet {text}: the scale is {spec.scale}, not a finite number'
    )
  if not 0 <= spec.start < spec.end <= 1:
    raise ValueError(
      f'controlnet {text}: it acts from {spec.start:g} to {spec.end:g} of the '
      'steps; START and END must be from 0 to 1, START below END'
    )
  return spec


def to_number(text: str) -> float | None:
  """Returns the number that a text is, or None."""
  try:
    return float(text)
  except ValueError:
    return None


def paths(specs: Sequence[ControlSpec]) -> list[str]:
  """Returns the path of each net, once, in the order of SDXL.controlnets."""
  return list(dict.fromkeys(spec.path for spec in specs))


def names(specs: Sequence[ControlSpec]) -> list[str]:
  """Returns the names of the nets in SDXL, in the order of `paths`."""
  return [f'{sdxl.CONTROLNET}{i}' for i in range(1, len(paths(specs)) + 1)]


def uses(configs: Mapping[str, Any], specs: Sequence[ControlSpec]) -> list[Use]:
  """Returns the calls of ControlNets at each step.

  A union net that is named several times is called once with all its images,
  each of its own scale. Any other is called for each image.

  Args:
    configs: SDXL.configs, with those of the ControlNets.
    specs: in the order of the command.
  """
  found = []
  for name, path in zip(names(specs), paths(specs)):
    places = [i for i, spec in enumerate(specs) if spec.path == path]
    if configs[name].control_types:
      found.append(Use(name, tuple(places)))
    else:
      found += [Use(name, (i,)) for i in places]
  return found


def split_type(text: str) -> tuple[str | None, str]:
  """Splits '[TYPE=]FILE' into (TYPE or None, FILE).

  TYPE is one of TYPES or a number; other text before '=' is of the file.
  """
  kind, equals, file = text.partition('=')
  if equals and (kind in TYPES or kind.isdecimal()):
    return kind, file
  return None, text


def type_number(
  kind: str | int | None, spec: ControlSpec, types: int
) -> int | None:
  """Returns the number of a control image's type; None for a plain ControlNet.

  Args:
    kind: one of TYPES, or a number; None: not given.
    spec: of the ControlNet.
    types: that it knows; 0: it is no union net.

  Raises:
    ValueError: for a type that is missing, unknown or of no use.
  """
  known = [n for n, number in TYPES.items() if number < types]
  example = f'{", ".join(known)}, or a number from 0 to {types - 1}'
  if not types:
    if kind is None:
      return None
    raise ValueError(
      f'control {kind}=...: {spec.path} is no union net, and has one type of '
      f'images alone: leave {kind}= out'
    )
  if kind is None:
    raise ValueError(
      f'{spec.path} is a union net: put the type of its control image before '
      f'the file, as canny=edges.png; it knows {example}'
    )
  number = TYPES.get(str(kind))
  if number is None and str(kind).isdecimal():
    number = int(kind)
  if number is None or number >= types:
    raise ValueError(
      f'control type {kind!r} is none of {spec.path}, which knows {example}'
    )
  return number
