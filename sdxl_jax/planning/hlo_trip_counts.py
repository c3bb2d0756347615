"""How often each part of a compiled program runs: the trip counts of loops.

XLA notes them on GPUs and CPUs. On TPUs they are read from the loop itself: an
integer that starts as a constant, to which the body adds a constant and which
the condition compares with a constant.
"""

import re
from typing import NamedTuple

TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What makes each comparison's limit the first value that is not reached.
DIRECTIONS = {'LT': 0, 'LE': 1, 'GT': 0, 'GE': -1}
MIRRORED = {'LT': 'GT', 'LE': 'GE', 'GT': 'LT', 'GE': 'LE'}
SAME_VALUE = {'copy', 'copy-start', 'copy-done', 'bitcast', 'convert'}


class Scope(NamedTuple):
  """A computation, and the loop that runs it if one does."""

  name: str
  loop: tuple | None = None  # (Scope around it, name of the while)


def top_level(program):
  """(computation, instruction, runs) of all that the device is told to do."""
  for scope, times in runs(program):
    for i in program.computations[scope.name].values():
      yield scope.name, i, times


def runs(program):
  """(Scope, how often it runs) of all computations that control flow reaches.

  A while's body runs its trip count, inside other loops their product; of a
  conditional each branch is counted, which is an upper bound. What is inside a
  fusion, or what a reduction applies to each pair, runs with its instruction.

  Raises:
    ValueError: where the trip count of a loop is not in the text.
  """
  pending = [(Scope(program.entry), 1)]
  while pending:
    scope, times = pending.pop()
    yield scope, times
    for i in program.computations[scope.name].values():
      if i.opcode == 'while':
        trips, inside = trip_count(program, scope, i), (scope, i.name)
        pending.append((Scope(i.called('body'), inside), times * trips))
        tests = times * (trips + 1)
        pending.append((Scope(i.called('condition'), inside), tests))
      elif i.opcode == 'call':
        pending.append((Scope(i.called('to_apply')), times))
      elif i.opcode == 'conditional':
        pending += [(Scope(branch), times) for branch in branches(i)]


def branches(conditional):
  listed = re.search(r'branch_computations=\{([^}]*)\}', conditional.attributes)
  if listed:
    return re.findall(r'[\w.\-]+', listed.group(1))
  return [
    conditional.called(f'{case}_computation') for case in ('true', 'false')
  ]


def trip_count(program, scope, loop):
  """As the compiler noted it, else counted from init to limit by step."""
  if noted := TRIP_COUNT.search(loop.attributes):
    return int(noted.group(1))
  inside = (scope, loop.name)
  condition = Scope(loop.called('condition'), inside)
  body = Scope(loop.called('body'), inside)
  index, direction, limit = exit_test(program, condition)
  if None not in (index, direction, limit):
    init = constant(program, *element(program, scope, loop.name, index, True))
    step = added(program, body, index)
    if init is not None and step:
      return len(range(init, limit + DIRECTIONS[direction], step))
  raise ValueError(
    f'the trip count of loop {loop.name} is not in the HLO: only loops that '
    'count from one constant to another, as lax.scan makes, can be counted'
  )


def exit_test(program, condition):
  """(index of the loop's variable, direction, limit); None for the unknown."""
  test = program.root(condition.name)
  if test.opcode != 'compare':
    return None, None, None
  direction = re.search(r'direction=(\w+)', test.attributes).group(1)
  counter, limit = test.operands
  if constant(program, condition, limit) is None:
    counter, limit, direction = limit, counter, MIRRORED.get(direction)
  index = variable(program, condition, counter)
  direction = direction if direction in DIRECTIONS else None
  return index, direction, constant(program, condition, limit)


def added(program, body, index):
  """What a body adds to its variable, None where it does anything else."""
  name = program.root(body.name).operands[index]
  i = same(program, body, name)
  if i.opcode != 'add':
    return None
  steps = [o for o in i.operands if variable(program, body, o) != index]
  return constant(program, body, steps[0]) if len(steps) == 1 else None


def same(program, scope, name):
  """The instruction that made the value, before it was copied or cast."""
  i = program.computations[scope.name][name]
  while i.opcode in SAME_VALUE:
    i = program.computations[scope.name][i.operands[0]]
  return i


def variable(program, scope, name):
  """Which of its loop's variables a value is, None where it is none."""
  i = same(program, scope, name)
  if i.opcode == 'get-tuple-element':
    source = program.computations[scope.name][i.operands[0]]
    return tuple_index(i) if source.opcode == 'parameter' else None
  return None


def tuple_index(i):
  return int(re.search(r'index=(\d+)', i.attributes).group(1))


def constant(program, scope, name):
  """The integer that a value always has, None where it may vary."""
  while name is not None:
    i = same(program, scope, name)
    if i.opcode == 'constant':
      return int(i.inside)
    if i.opcode != 'get-tuple-element':
      return None
    scope, name = element(program, scope, i.operands[0], tuple_index(i))
  return None


def element(program, scope, name, index, initial=False):
  """(Scope, name) of what is at an index of a tuple; None where it may vary.

  Of a loop's result, and inside of it, that is what went in, where the loop
  hands it on unchanged or where the initial value is asked for.
  """
  i = program.computations[scope.name][name]
  if i.opcode == 'tuple':
    return scope, i.operands[index]
  if i.opcode == 'parameter' and scope.loop:
    scope, name = scope.loop
    i = program.computations[scope.name][name]
  if i.opcode == 'while':
    body = Scope(i.called('body'), (scope, name))
    handed_on = program.root(body.name).operands[index]
    if initial or variable(program, body, handed_on) == index:
      return element(program, scope, i.operands[0], index)
  return scope, None
