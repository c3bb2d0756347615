"""Counts the bytes that one instruction moves, in memory and between devices.

Functions take a Program, the name of a computation and an instruction in it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from sdxl_jax.planning import hlo

# Bytes that a device receives in a group of n, per byte of its operand, by the
# best algorithm (a ring; Thakur et al. 2005, Optimization of Collective
# Communication Operations in MPICH).
RECEIVED = {
  'all-gather': lambda n: n - 1,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
}


class Collective(NamedTuple):
  """An exchange between devices."""

  kind: str  # a key of RECEIVED
  received: float  # bytes that one device receives
  group: list[int]  # ids of the devices of the first group


def collectives_of(
  program: hlo.Program, computation: str, i: hlo.Instruction
) -> Iterator[Collective]:
  """Yields each collective that an instruction starts, in fusions too."""
  kind = i.opcode.removesuffix('-start')
  if kind in RECEIVED:
    group = hlo.group(i, program.devices)
    operands = sum(program.operand_bytes(computation, i))
    yield Collective(kind, operands * RECEIVED[kind](len(group)), group)
  elif i.opcode in ('fusion', 'async-start'):
    name = i.called('calls')
    fused = program.computations[name]
    for inner in fused.values():
      if is_continuation(fused, inner):
        continue
      for collective in collectives_of(program, name, inner):
        if collective.kind == 'all-reduce' and is_sliced(fused, inner):
          collective = Collective(
            'reduce-scatter', collective.received / 2, collective.group
          )
        yield collective


def is_continuation(
  fused: dict[str, hlo.Instruction], i: hlo.Instruction
) -> bool:
  """Returns whether an earlier fusion has started this collective.

  A TPU hides a collective behind other work: the collective stands in the
  fusion that starts it, in each fusion that runs meanwhile, and in the fusion
  that waits for it.
  """
  if 'async_collective_fusion_config' not in i.attributes:
    return False
  return not any(
    '"AsyncCollectiveStart"' in j.attributes for j in fused.values()
  )


def is_sliced(fused: dict[str, hlo.Instruction], i: hlo.Instruction) -> bool:
  """Returns whether each device keeps only a slice of an all-reduce's result.

  Such an all-reduce is a reduce-scatter: a TPU fuses the two and moves half of
  the bytes.
  """
  return any(
    j.opcode == 'dynamic-slice' and i.name in j.operands for j in fused.values()
  )


# Instructions that name, group or steer, and move nothing themselves.
FREE = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while',
  'call', 'conditional', 'after-all', 'partition-id', 'replica-id',
  'opt-barrier', 'add-dependency', 'domain',
}  # fmt: skip


# Memory that cuBLAS or cuDNN may use, the last result of their calls.
WORKSPACE = re.compile(r'[su]8\[\d+\](?:\{0\})?\)$')


def moves_nothing(i: hlo.Instruction) -> bool:
  """Returns whether an instruction neither reads nor writes memory."""
  return i.opcode in FREE or '"AllocateBuffer"' in i.attributes


def bytes_read(
  program: hlo.Program, computation: str, i: hlo.Instruction
) -> int:
  """Returns the bytes of its operands that an instruction reads.

  An operand that is given twice is read once.
  """
  # An asynchronous operation reads at its -start and writes at its -done.
  if moves_nothing(i) or i.opcode.endswith('-done'):
    return 0
  operands = program.operand_bytes(computation, i)
  if i.opcode in ('slice', 'dynamic-slice', 'gather'):
    return i.bytes
  if i.opcode == 'dynamic-update-slice':
    return operands[1]
  if i.opcode == 'fusion':
    fused = i.called('calls')
    return sum(
      parameter_bytes_read(program, fused, n, size)
      for n, size in enumerate(operands)
    )
  return sum(dict(zip(i.operands, operands)).values())


def parameter_bytes_read(
  program: hlo.Program, fused: str, n: int, size: int
) -> int:
  """Returns the bytes that a fusion reads of its n-th parameter.

  All `size` bytes, or only slices where nothing else uses the parameter.
  """
  users = program.computations[fused].values()
  names = [
    i.name for i in users if (i.opcode, i.inside) == ('parameter', str(n))
  ]
  total = 0
  # Follow the parameter through bitcasts to all of its users.
  while names:
    name = names.pop()
    for user in users:
      for position, operand in enumerate(user.operands):
        if operand != name:
          continue
        if user.opcode == 'bitcast':
          names.append(user.name)
        elif user.opcode == 'dynamic-slice' and position == 0:
          total += user.bytes
        elif user.opcode == 'fusion':
          inner = user.called('calls')
          total += parameter_bytes_read(program, inner, position, size)
        elif user.opcode != 'dynamic-update-slice' or position:
          return size
  return min(total, size)


def bytes_written(
  program: hlo.Program, computation: str, i: hlo.Instruction
) -> int:
  """Returns the bytes of its result that an instruction writes."""
  if moves_nothing(i) or i.opcode.endswith('-start'):
    return 0
  while i.opcode == 'fusion':
    computation = i.called('calls')
    i = program.root(computation)
  if i.opcode == 'custom-call' and (space := WORKSPACE.search(i.shape)):
    return i.bytes - hlo.shape_bytes(space.group())
  results = [i]
  if i.opcode == 'tuple':
    results = [program.computations[computation][o] for o in i.operands]
  return sum(result_bytes_written(program, computation, i) for i in results)


def result_bytes_written(
  program: hlo.Program, computation: str, i: hlo.Instruction
) -> int:
  """Returns the bytes of a result; of a dynamic-update-slice, the update's."""
  while i.opcode == 'bitcast':
    i = program.computations[computation][i.operands[0]]
  if i.opcode == 'dynamic-update-slice':
    return program.operand_bytes(computation, i)[1]
  return i.bytes
