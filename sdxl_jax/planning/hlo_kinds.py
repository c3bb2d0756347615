"""Classifies the instructions of a compiled program by what they do.

A fusion is of the costliest kind that something in it is: a product with a
bias and an activation behind it is a product.
"""

from collections.abc import Iterator

from sdxl_jax.planning import hlo, hlo_traffic

# In the order of the tables.
PRODUCTS = 'products'
CONVOLUTIONS = 'convolutions'
ATTENTION = 'attention'
KERNELS = 'other kernels'
REDUCTIONS = 'norms, reductions'
COPIES = 'copies, layout'
CONVERSIONS = 'conversions'
LOOPS = 'loop bookkeeping'
ELEMENTWISE = 'other elementwise'
COLLECTIVES = 'collectives'
OTHERS = 'gathers, others'
HOST = 'copies from the host'  # of offloaded nets, in no program
KINDS = (
  PRODUCTS, CONVOLUTIONS, ATTENTION, KERNELS, REDUCTIONS, COPIES, CONVERSIONS,
  LOOPS, ELEMENTWISE, COLLECTIVES, OTHERS, HOST,
)  # fmt: skip
# What each kind is, for those who read the table.
MEANINGS = {
  ATTENTION: 'fused kernels, or products of queries, keys and values',
  LOOPS: 'slices, updates and zeros of what scans stack',
  COPIES: 'copies, transposes, pads, slices, concatenations',
}

REDUCING = {'reduce', 'reduce-window', 'select-and-scatter', 'map'}
STACKING = {'dynamic-slice', 'dynamic-update-slice'}
CONVERTING = {'convert', 'reduce-precision', 'stochastic-convert'}
LAYING_OUT = {
  'copy', 'transpose', 'reshape', 'bitcast-convert', 'pad', 'slice', 'reverse',
  'concatenate', 'copy-start', 'copy-done', 'slice-start', 'slice-done',
}  # fmt: skip
GATHERING = {'gather', 'scatter', 'sort', 'rng', 'rng-bit-generator', 'fft'}
FILLING = {'broadcast', 'iota'}
CALLING = {'fusion', 'async-start', 'async-done'}
# By which jax.nn.dot_product_attention names its products, and ours.
ATTENTION_NAMES = (
  'BTNH,BSNH', 'BNTS,BSNH', 'BTNH,BNTS', 'bnhd,bmhd', 'bhnm,bmhd', 'bnd,bmd',
  'bnm,bmd', 'splash', 'flash', 'mha',
)  # fmt: skip


def inside(
  program: hlo.Program, computation: str, i: hlo.Instruction
) -> Iterator[tuple[str, hlo.Instruction]]:
  """Yields (computation, instruction) of all that an instruction computes.

  That is itself, or what it fuses or starts.
  """
  called = i.called('calls') if i.opcode in CALLING else None
  if called is None:
    yield computation, i
    return
  for inner in program.computations[called].values():
    yield from inside(program, called, inner)


def kind(
  program: hlo.Program, computation: str, i: hlo.Instruction
) -> tuple[str, str | None]:
  """Returns (kind, op_name) of an instruction.

  Args:
    program: the whole.
    computation: name of the one that has the instruction.
    i: the instruction.

  Returns:
    one of KINDS, and the name that JAX gave to what decided it; None if that
    has none.
  """
  inner = [x for _, x in inside(program, computation, i)]
  ranks = [(rank(x), x) for x in inner]
  first = min((r for r, _ in ranks), default=len(ORDER) - 1)
  deciding = [x for r, x in ranks if r == first]
  names = [op_name(x) for x in (*deciding[::-1], i, *inner[::-1])]
  found = LOOPS if ORDER[first] in (ZEROS, NOTHING) else ORDER[first]
  return found, next((name for name in names if name), None)


# By which kind a fusion is that has several: the costly ones first.
ORDER = (
  ATTENTION, KERNELS, CONVOLUTIONS, PRODUCTS, COLLECTIVES, REDUCTIONS, OTHERS,
  ELEMENTWISE, LOOPS, CONVERSIONS, COPIES, 'zeros', 'nothing',
)  # fmt: skip
ZEROS, NOTHING = ORDER[-2:]


def rank(i: hlo.Instruction) -> int:
  """Returns the index in ORDER of an instruction that is no fusion."""
  return ORDER.index(single_kind(i))


def single_kind(i: hlo.Instruction) -> str:
  """Returns the kind of an instruction that is no fusion."""
  opcode = i.opcode
  name = op_name(i) or ''
  if opcode.removesuffix('-start').removesuffix('-done') in COLLECTIVE:
    return COLLECTIVES
  if opcode in ('dot', 'convolution'):
    return product_kind(i, name)
  if opcode == 'custom-call':
    return custom_kind(i, name)
  if opcode in REDUCING:
    return REDUCTIONS
  if opcode in GATHERING:
    return OTHERS
  if opcode in STACKING:
    return LOOPS
  if opcode in CONVERTING:
    return CONVERSIONS
  if opcode in LAYING_OUT:
    return COPIES
  if opcode in FILLING:
    return ZEROS
  # Scalars are indices, and of no cost.
  if opcode in hlo_traffic.FREE or is_scalar(i):
    return NOTHING
  return ELEMENTWISE


COLLECTIVE = set(hlo_traffic.RECEIVED)


def product_kind(i: hlo.Instruction, name: str) -> str:
  """Returns the kind of a dot or a convolution.

  XLA turns one into the other, so that JAX's name decides where there is one.
  """
  if is_attention(name):
    return ATTENTION
  if 'dot_general' in name:
    return PRODUCTS
  if 'conv_general_dilated' in name:
    return CONVOLUTIONS
  return PRODUCTS if i.opcode == 'dot' else CONVOLUTIONS


def custom_kind(i: hlo.Instruction, name: str) -> str:
  """Returns the kind of a call of a library or a kernel."""
  target = custom_target(i)
  if 'fmha' in target:
    return ATTENTION
  if target == 'tpu_custom_call' or 'triton' in target.lower():
    return ATTENTION if is_attention(name) else KERNELS
  if 'conv' in target:
    return CONVOLUTIONS
  if any(word in target for word in ('gemm', 'matmul', 'cublas')):
    return ATTENTION if is_attention(name) else PRODUCTS
  if 'norm' in target.lower():
    return REDUCTIONS
  if target in NO_WORK:
    return NOTHING
  return OTHERS


# Custom calls that mark something for the compiler.
NO_WORK = {
  'AllocateBuffer', 'AssumeGatherIndicesInBound', 'AsyncCollectiveStart',
  'AsyncCollectiveDone', 'Sharding', 'SPMDFullToShardShape',
}  # fmt: skip


def custom_target(i: hlo.Instruction) -> str:
  """Returns what a custom call calls, '' for other instructions."""
  key = 'custom_call_target="'
  before, found, after = i.attributes.partition(key)
  return after[: after.index('"')] if found else ''


def op_name(i: hlo.Instruction) -> str | None:
  """Returns the name that JAX gave to an instruction."""
  _, found, after = i.attributes.partition('op_name="')
  return after[: after.index('"')].partition(';')[0] if found else None


def is_attention(name: str) -> bool:
  """Returns whether a product or kernel belongs to scaled dot products."""
  parts = name.split('/')[-3:]
  return any(word in part for part in parts for word in ATTENTION_NAMES)


def is_scalar(i: hlo.Instruction) -> bool:
  """Returns whether the result has a single element."""
  return '[]' in i.shape and i.shape.count('[') == 1
