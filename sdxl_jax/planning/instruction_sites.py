"""Finds for each instruction its kind and the part of the nets it belongs to.

XLA adds instructions without a name, copies and zeros above all. They belong
where their operands come from or, if those have no name, where their result
goes; in a loop that names nothing, where the loop is.
"""

from typing import NamedTuple

from sdxl_jax.planning import hlo, hlo_kinds, hlo_traffic, op_names


class Place(NamedTuple):
  """What an instruction does, and for which part of the nets."""

  kind: str  # one of hlo_kinds.KINDS
  site: op_names.Site


class Places:
  """The places of all instructions of a program, computed when needed."""

  def __init__(self, program: hlo.Program):
    self._program = program
    self._places = {}
    # {computation: name of what runs it}, of loops and calls.
    self._callers = {}

  def find(self, computation: str, i: hlo.Instruction) -> Place:
    """Returns the place of an instruction that control flow reaches."""
    if computation not in self._places:
      self._places[computation] = self._locate(computation)
    return self._places[computation][i.name]

  def _locate(self, computation):
    """Returns {instruction: Place} of one computation."""
    instructions = self._program.computations[computation]
    kinds, names = {}, {}
    for i in instructions.values():
      kinds[i.name], name = hlo_kinds.kind(self._program, computation, i)
      names[i.name] = name if is_full(name) else None
    spread(instructions, names)
    for i in instructions.values():
      names[i.name] = names[i.name] or self._callers.get(computation)
      for attribute in ('condition', 'body', 'to_apply'):
        if i.opcode in hlo_traffic.FREE and (called := i.called(attribute)):
          self._callers.setdefault(called, names[i.name])
    sites = {name: op_names.site(name) for name in set(names.values())}
    return {
      name: Place(kind, sites[names[name]]) for name, kind in kinds.items()
    }


def is_full(name: str | None) -> bool:
  """Returns whether a name has the path to its operation, or an argument's."""
  return bool(name) and (
    name.startswith('jit(') or "['" in name.replace('\\', '')
  )


def spread(
  instructions: dict[str, hlo.Instruction], names: dict[str, str | None]
) -> None:
  """Gives names to unnamed instructions: their operands', or their users'.

  Args:
    instructions: of a computation, operands before users except for its root.
    names: {instruction: name}, changed in place.
  """
  operands = {
    i.name: [o for o in i.operands if o in instructions]
    for i in instructions.values()
  }
  for name, sources in operands.items():
    # A tuple has operands of many places.
    if names[name] is None and instructions[name].opcode != 'tuple':
      names[name] = next((names[o] for o in sources if names[o]), None)
  for name, sources in reversed(operands.items()):
    for source in sources:
      if names[source] is None:
        names[source] = names[name]
