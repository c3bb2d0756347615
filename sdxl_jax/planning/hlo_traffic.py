"""What one instruction of a compiled program moves, in memory and over links.

Functions take a Program, the name of a computation and an instruction in it.
"""

from sdxl_jax.planning import hlo

# What a device receives of n in a group, per byte of its operand, on the best
# algorithm (a ring; Thakur et al. 2005, Optimization of Collective
# Communication Operations in MPICH).
RECEIVED = {
  'all-gather': lambda n: n - 1,
  'reduce-scatter': lambda n: (n - 1) / n,
  'all-reduce': lambda n: 2 * (n - 1) / n,
  'all-to-all': lambda n: (n - 1) / n,
  'collective-permute': lambda n: 1,
}


def exchanges(program, computation, i):
  """(kind, bytes, group) of each collective that one instruction starts."""
  kind = i.opcode.removesuffix('-start')
  if kind in RECEIVED:
    group = hlo.group(i, program.devices)
    operands = sum(program.operand_bytes(computation, i))
    yield kind, operands * RECEIVED[kind](len(group)), group
  elif i.opcode in ('fusion', 'async-start'):
    name = i.called('calls')
    fused = program.computations[name]
    for inner in fused.values():
      if goes_on(fused, inner):
        continue
      for kind, received, group in exchanges(program, name, inner):
        if kind == 'all-reduce' and is_sliced(fused, inner):
          kind, received = 'reduce-scatter', received / 2
        yield kind, received, group


def goes_on(fused, i):
  """Whether this is a collective that an earlier fusion has started.

  A TPU hides a collective behind others' work: it stands in the fusion that
  starts it, in each that it runs beside and in the one that waits for it.
  """
  if 'async_collective_fusion_config' not in i.attributes:
    return False
  return not any(
    '"AsyncCollectiveStart"' in j.attributes for j in fused.values()
  )


def is_sliced(fused, i):
  """Whether of an all-reduce each device keeps its slice: a reduce-scatter.

  A TPU fuses the two and so goes half of the way.
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


def moves_nothing(i):
  return i.opcode in FREE or '"AllocateBuffer"' in i.attributes


def read(program, computation, i):
  """Bytes of its operands that an instruction reads from memory."""
  if moves_nothing(i) or i.opcode.endswith('-done'):  # read at the -start
    return 0
  operands = program.operand_bytes(computation, i)
  if i.opcode in ('slice', 'dynamic-slice', 'gather'):
    return i.bytes
  if i.opcode == 'dynamic-update-slice':
    return operands[1]
  if i.opcode == 'fusion':
    fused = i.called('calls')
    return sum(
      parameter_read(program, fused, n, size) for n, size in enumerate(operands)
    )
  return sum(operands)


def parameter_read(program, fused, n, size):
  """What a fusion reads of its n-th parameter: all of it or only slices."""
  users = program.computations[fused].values()
  names = [
    i.name for i in users if (i.opcode, i.inside) == ('parameter', str(n))
  ]
  total = 0
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
          total += parameter_read(program, inner, position, size)
        elif user.opcode != 'dynamic-update-slice' or position:
          return size
  return min(total, size)


def written(program, computation, i):
  """Bytes of its result that an instruction writes to memory."""
  if moves_nothing(i) or i.opcode.endswith('-start'):  # written at the -done
    return 0
  while i.opcode == 'fusion':
    computation = i.called('calls')
    i = program.root(computation)
  results = [i]
  if i.opcode == 'tuple':
    results = [program.computations[computation][o] for o in i.operands]
  return sum(result_written(program, computation, i) for i in results)


def result_written(program, computation, i):
  """All of it, or what a dynamic-update-slice puts in place."""
  while i.opcode == 'bitcast':
    i = program.computations[computation][i.operands[0]]
  if i.opcode == 'dynamic-update-slice':
    return program.operand_bytes(computation, i)[1]
  return i.bytes
