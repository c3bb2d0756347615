"""Reads a compiled program from an HloProto, which profiles of JAX contain.

The numbers of the fields are those of openxla/xla, xla/service/hlo.proto and
xla/xla_data.proto. What is read becomes attributes as `as_text` prints them, so
that all else works on either.
"""

from sdxl_jax.planning import hlo, protobuf_fields

# Of xla.PrimitiveType.
TUPLE = 13
TYPES = {
  1: 'pred', 2: 's8', 3: 's16', 4: 's32', 5: 's64', 6: 'u8', 7: 'u16',
  8: 'u32', 9: 'u64', 10: 'f16', 11: 'f32', 12: 'f64', 14: 'opaque',
  15: 'c64', 16: 'bf16', 17: 'token', 18: 'c128', 19: 'f8e5m2',
  20: 'f8e4m3fn', 21: 's4', 22: 'u4', 23: 'f8e4m3b11fnuz', 24: 'f8e5m2fnuz',
  25: 'f8e4m3fnuz', 28: 'f8e4m3', 29: 'f8e3m4',
}  # fmt: skip
# By which the text names the computations that an instruction calls.
CALLED = {
  'while': ('body', 'condition'),
  'fusion': ('calls',),
  'async-start': ('calls',),
  'async-update': ('calls',),
  'async-done': ('calls',),
}
message, text = protobuf_fields.message, protobuf_fields.text
integer, integers = protobuf_fields.integer, protobuf_fields.integers


def program(data: memoryview) -> hlo.Program:
  """Returns the Program of a serialised HloProto.

  Raises:
    ValueError: if the bytes are none.
  """
  module = message(message(data)[1][-1])
  computations = [message(c) for c in module[3]]
  names = {integer(c[5]): text(c[1]) for c in computations}
  # {computation: ids of its instructions as they are executed}
  schedule = {}
  for entry in message(module[7][-1])[1] if module[7] else ():
    entry = message(entry)
    ids = integers(message(entry[2][-1])[1])
    schedule[integer(entry[1])] = ids
  return hlo.Program(
    header=f'HloModule {text(module[1])}',
    entry=text(module[2]),
    computations={
      text(c[1]): read_computation(c, names, schedule) for c in computations
    },
  )


def read_computation(
  computation: dict[int, list[protobuf_fields.Value]],
  computations: dict[int, str],
  schedule: dict[int, list[int]],
) -> dict[str, hlo.Instruction]:
  """Returns {name: Instruction}, the root last.

  Args:
    computation: fields of an HloComputationProto.
    computations: {id: name} of all.
    schedule: {id of a computation: ids of its instructions in order}.
  """
  found = {}
  for data in computation[2]:
    fields = message(data)
    found[integer(fields[35])] = fields
  names = {n: text(fields[1]) for n, fields in found.items()}
  order = schedule.get(integer(computation[5]), list(found))
  root = integer(computation[6])
  order = [n for n in order if n != root] + [root]
  return {
    names[n]: read_instruction(found[n], names, computations) for n in order
  }


def read_instruction(
  fields: dict[int, list[protobuf_fields.Value]],
  names: dict[int, str],
  computations: dict[int, str],
) -> hlo.Instruction:
  """Returns an Instruction of the fields of an HloInstructionProto."""
  opcode = text(fields[2])
  operands = [f'%{names[n]}' for n in integers(fields[36])]
  inside = ', '.join(operands)
  if opcode == 'parameter':
    inside = str(integer(fields[9]))
  elif opcode == 'constant':
    inside = constant(fields)
  return hlo.Instruction(
    text(fields[1]),
    shape(fields[3][-1]),
    opcode,
    inside,
    ''.join(
      f', {key}={value}'
      for key, value in attributes(fields, opcode, computations)
    ),
  )


def constant(fields: dict[int, list[protobuf_fields.Value]]) -> str:
  """Returns an integer constant as text, '' for what no loop counts with."""
  literal = message(fields[8][-1]) if fields[8] else {}
  # LiteralProto: s32s, s64s, u32s, u64s.
  values = [n for key in (4, 5, 6, 7) for n in integers(literal.get(key, []))]
  return str(values[0]) if len(values) == 1 else ''


def attributes(
  fields: dict[int, list[protobuf_fields.Value]],
  opcode: str,
  computations: dict[int, str],
) -> list[tuple[str, str]]:
  """Returns what follows the operands in the text, as far as it is needed."""
  found = []
  called = [computations[n] for n in integers(fields[38])]
  if opcode == 'conditional':
    found.append(('branch_computations', braced(', '.join(called))))
  else:
    keys = CALLED.get(opcode, ('to_apply',))
    found += [(key, f'%{name}') for key, name in zip(keys, called)]
  if opcode == 'get-tuple-element':
    found.append(('index', str(integer(fields[13]))))
  if fields[63]:
    found.append(('direction', text(fields[63])))
  if fields[30]:
    summed = integers(message(fields[30][-1])[1])
    found.append(('lhs_contracting_dims', braced(listed(summed))))
  if fields[16]:
    found += convolution(fields)
  if fields[28]:
    found.append(('custom_call_target', f'"{text(fields[28])}"'))
  if fields[7] and (name := text(message(fields[7][-1])[2])):
    found.append(('metadata', braced(f'op_name="{name}"')))
  if fields[43]:
    found.append(('backend_config', text(fields[43])))
  return found


def listed(numbers: list[int], separator: str = ',') -> str:
  """Returns '1,2,3'."""
  return separator.join(map(str, numbers))


def braced(content: str) -> str:
  """Returns '{content}'."""
  return '{' + content + '}'


def convolution(
  fields: dict[int, list[protobuf_fields.Value]],
) -> list[tuple[str, str]]:
  """Returns window and dim_labels of a convolution."""
  window = (
    [message(d) for d in message(fields[15][-1])[1]] if fields[15] else []
  )
  sizes = listed([integer(d[1]) for d in window], 'x')
  dilations = listed([integer(d[6]) or 1 for d in window], 'x')
  numbers = message(fields[16][-1])
  # Kernel: input and output feature (of 0 where not set), spatial.
  kernel = {integer(numbers[3]): 'i', integer(numbers[4]): 'o'}
  spatial = integers(numbers[6])
  kernel |= {axis: str(n) for n, axis in enumerate(spatial)}
  labels = ''.join(kernel[axis] for axis in sorted(kernel))
  return [
    ('window', braced(f'size={sizes} lhs_dilate={dilations}')),
    ('dim_labels', f'b_{labels}->b'),
  ]


def shape(data: memoryview) -> str:
  """Returns a ShapeProto as text, without the layout."""
  fields = message(data)
  if integer(fields[2]) == TUPLE:
    return f'({", ".join(map(shape, fields[4]))})'
  dtype = TYPES.get(integer(fields[2]), 'opaque')
  return f'{dtype}[{listed(integers(fields[3]))}]'
