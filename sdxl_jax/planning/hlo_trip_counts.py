"""Counts how often each part of a compiled program runs: loop trip counts.

XLA notes trip counts in the HLO of GPUs and CPUs. On TPUs the count is derived
from the loop itself: an integer variable that starts at a constant, to which
the body adds a constant, and which the condition compares with a constant.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from sdxl_jax.planning import hlo

TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Added to the limit of each comparison: the first value that is not reached.
DIRECTIONS = {'LT': 0, 'LE': 1, 'GT': 0, 'GE': -1}
MIRRORED = {'LT': 'GT', 'LE': 'GE', 'GT': 'LT', 'GE': 'LE'}
SAME_VALUE = {'copy', 'copy-start', 'copy-done', 'bitcast', 'convert'}


class Scope(NamedTuple):
  """A computation, and the loop that runs it if one does."""

  name: str
  loop: tuple | None = None  # (Scope that contains the while, its name)


class ExitTest(NamedTuple):
  """The comparison that ends a loop; None where it is unknown."""

  index: int | None  # of the loop's variable
  direction: str | None  # a key of DIRECTIONS
  limit: int | None


def top_level(
  program: hlo.Program,
) -> Iterator[tuple[str, hlo.Instruction, int]]:
  """Yields (computation, instruction, runs) of all that a device executes.

  In the order of the text, which of a compiled program is that of execution;
  what a loop runs comes after the loop.

  Raises:
    ValueError: if the trip count of a loop is not in the text.
  """
  yield from executed(program, Scope(program.entry), 1)


def executed(
  program: hlo.Program, scope: Scope, count: int
) -> Iterator[tuple[str, hlo.Instruction, int]]:
  """Yields the same of one computation that runs `count` times."""
  for i in program.computations[scope.name].values():
    yield scope.name, i, count
    for called, trips in entered(program, scope, i):
      yield from executed(program, called, count * trips)


def runs(program: hlo.Program) -> Iterator[tuple[Scope, int]]:
  """Yields (Scope, runs) of all computations that control flow reaches.

  Raises:
    ValueError: if the trip count of a loop is not in the text.
  """
  pending = [(Scope(program.entry), 1)]
  while pending:
    scope, count = pending.pop()
    yield scope, count
    for i in program.computations[scope.name].values():
      for called, trips in entered(program, scope, i):
        pending.append((called, count * trips))


def entered(
  program: hlo.Program, scope: Scope, i: hlo.Instruction
) -> list[tuple[Scope, int]]:
  """Returns (Scope, times) of what an instruction of control flow runs.

  The body of a loop runs its trip count times. Of a conditional each branch is
  counted, which is an upper bound. Computations inside a fusion, or applied by
  a reduction, are part of one instruction.

  Raises:
    ValueError: if the trip count of a loop is not in the text.
  """
  if i.opcode == 'while':
    trips = trip_count(program, scope, i)
    loop = scope, i.name
    # The condition is evaluated once more, when it ends the loop.
    return [
      (Scope(i.called('condition'), loop), trips + 1),
      (Scope(i.called('body'), loop), trips),
    ]
  if i.opcode == 'call':
    return [(Scope(i.called('to_apply')), 1)]
  if i.opcode == 'conditional':
    return [(Scope(branch), 1) for branch in branches(i)]
  return []


def branches(conditional: hlo.Instruction) -> list[str]:
  """Returns the computations of a conditional's branches."""
  names = re.search(r'branch_computations=\{([^}]*)\}', conditional.attributes)
  if names:
    return re.findall(r'[\w.\-]+', names.group(1))
  return [
    conditional.called(f'{case}_computation') for case in ('true', 'false')
  ]


def trip_count(
  program: hlo.Program, scope: Scope, loop: hlo.Instruction
) -> int:
  """Returns the noted trip count, or derives it from start, step and limit.

  Raises:
    ValueError: if the HLO has neither.
  """
  if noted := TRIP_COUNT.search(loop.attributes):
    return int(noted.group(1))
  inside = (scope, loop.name)
  condition = Scope(loop.called('condition'), inside)
  body = Scope(loop.called('body'), inside)
  index, direction, limit = exit_test(program, condition)
  if None not in (index, direction, limit):
    source, name = element(program, scope, loop.name, index, initial=True)
    start = constant(program, source, name)
    step = loop_increment(program, body, index)
    if start is not None and step:
      return len(range(start, limit + DIRECTIONS[direction], step))
  raise ValueError(
    f'the trip count of loop {loop.name} is not in the HLO: only loops that '
    'count from one constant to another, as lax.scan makes, can be counted'
  )


def exit_test(program: hlo.Program, condition: Scope) -> ExitTest:
  """Reads the comparison of a loop's variable with its limit."""
  test = program.root(condition.name)
  if test.opcode != 'compare':
    return ExitTest(None, None, None)
  direction = re.search(r'direction=(\w+)', test.attributes).group(1)
  counter, limit = test.operands
  # The limit may stand on either side.
  if constant(program, condition, limit) is None:
    counter, limit, direction = limit, counter, MIRRORED.get(direction)
  return ExitTest(
    index=loop_variable(program, condition, counter),
    direction=direction if direction in DIRECTIONS else None,
    limit=constant(program, condition, limit),
  )


def loop_increment(program: hlo.Program, body: Scope, index: int) -> int | None:
  """Returns the constant that a body adds to a variable, None for any other."""
  name = program.root(body.name).operands[index]
  i = resolve_copies(program, body, name)
  if i.opcode != 'add':
    return None
  steps = [o for o in i.operands if loop_variable(program, body, o) != index]
  return constant(program, body, steps[0]) if len(steps) == 1 else None


def resolve_copies(
  program: hlo.Program, scope: Scope, name: str
) -> hlo.Instruction:
  """Returns the instruction that computed a value, before copies and casts."""
  i = program.computations[scope.name][name]
  while i.opcode in SAME_VALUE:
    i = program.computations[scope.name][i.operands[0]]
  return i


def loop_variable(program: hlo.Program, scope: Scope, name: str) -> int | None:
  """Returns the index of the loop variable that a value is, None for others."""
  i = resolve_copies(program, scope, name)
  if i.opcode == 'get-tuple-element':
    source = program.computations[scope.name][i.operands[0]]
    return tuple_index(i) if source.opcode == 'parameter' else None
  return None


def tuple_index(i: hlo.Instruction) -> int:
  """Returns which element a get-tuple-element takes."""
  return int(re.search(r'index=(\d+)', i.attributes).group(1))


def constant(
  program: hlo.Program, scope: Scope, name: str | None
) -> int | None:
  """Returns the integer that a value always has, None if it may vary."""
  while name is not None:
    i = resolve_copies(program, scope, name)
    if i.opcode == 'constant':
      return int(i.inside)
    if i.opcode != 'get-tuple-element':
      return None
    scope, name = element(program, scope, i.operands[0], tuple_index(i))
  return None


def element(
  program: hlo.Program,
  scope: Scope,
  name: str,
  index: int,
  initial: bool = False,
) -> tuple[Scope, str | None]:
  """Returns (Scope, name) of one element of a tuple; name None if it varies.

  An element of a loop's variables, inside the loop or in its result, is the
  loop's operand if the body returns it unchanged, or if `initial` asks for the
  value before the first run.
  """
  i = program.computations[scope.name][name]
  if i.opcode == 'tuple':
    return scope, i.operands[index]
  # Inside a loop, the parameter is the tuple of the loop's variables.
  if i.opcode == 'parameter' and scope.loop:
    scope, name = scope.loop
    i = program.computations[scope.name][name]
  if i.opcode == 'while':
    body = Scope(i.called('body'), (scope, name))
    returned = program.root(body.name).operands[index]
    if initial or loop_variable(program, body, returned) == index:
      return element(program, scope, i.operands[0], index)
  return scope, None
