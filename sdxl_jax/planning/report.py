"""Formats the plans of training and sampling as text."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sdxl_jax.planning import machines

GIB = 2**30


class Column(NamedTuple):
  """A column of a table."""

  name: str
  show: Callable[[Any], str]  # the cell of an entry


def table(columns: Sequence[Column], entries: Sequence[Any]) -> str:
  """Returns a header and one line per entry, aligned to the right."""
  rows = [[column.name for column in columns]]
  rows += [[column.show(entry) for column in columns] for entry in entries]
  widths = [max(map(len, cells)) for cells in zip(*rows)]
  lines = [
    '  '.join(cell.rjust(width) for cell, width in zip(row, widths))
    for row in rows
  ]
  return '\n'.join(lines)


def describe_machine(machine: machines.Machine) -> str:
  """Returns '8 x TPU v5p, 95.7 GiB each'."""
  memory = machine.chip.memory
  limit = f'{memory / GIB:.1f} GiB each' if memory else 'no limit known'
  return f'{machine.size} x {machine.chip.name}, {limit}'


def verdict(
  machine: machines.Machine, part: str, peak: int, remedy: str
) -> str:
  """States whether a plan fits the memory of a device.

  Args:
    machine: the devices.
    part: name of the program with the highest peak.
    peak: bytes per device.
    remedy: sentence for the case that the peak does not fit.
  """
  if machine.chip.memory is None:
    return f'Most is taken by {part}: {peak / GIB:.2f} GiB.'
  share = peak / machine.chip.memory
  usage = f'{part} takes {share:.0%} of the memory of a device'
  if machine.fits(peak):
    return f'It fits: {usage}.'
  limit = f'{1 - machines.MEMORY_HEADROOM:.0%} is the limit'
  return f'It does not fit: {usage}, {limit}. {remedy}'
