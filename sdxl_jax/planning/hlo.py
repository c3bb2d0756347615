"""Parses the text of a compiled program, XLA's HLO.

`compiled.as_text()` prints one instruction per line,

  %name = bf16[8,128]{1,0} opcode(%operand, ...), attribute=value, ...

in computations that call one another. The texts for TPUs, GPUs and CPUs differ
in the attributes only.
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
INSTRUCTION = re.compile(r'^  (ROOT )?%?([\w.\-]+) = (.*)$')
ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,<=]*)\]')
BRACKET = re.compile(r'[()]')


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  shape: str  # as printed; a tuple's shape is in brackets
  opcode: str
  inside: str  # text between the brackets of the opcode
  attributes: str

  @property
  def operands(self) -> list[str]:
    """Names of the instructions whose results are the operands."""
    return re.findall(r'%([\w.\-]+)', self.inside)

  @property
  def bytes(self) -> int:
    """Size of the result, summed over the elements of a tuple."""
    return shape_bytes(self.shape)

  def called(self, attribute: str) -> str | None:
    """Returns the computation in attribute=%name, None without attribute."""
    match = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return match.group(1) if match else None


class Program(NamedTuple):
  """A compiled program."""

  header: str
  entry: str  # name of the computation that runs first
  # {computation: {name: Instruction}}; the root instruction is the last.
  computations: dict[str, dict[str, Instruction]]

  def root(self, computation: str) -> Instruction:
    """Returns the instruction whose result the computation returns."""
    return list(self.computations[computation].values())[-1]

  def operand_bytes(
    self, computation: str, instruction: Instruction
  ) -> list[int]:
    """Returns the size of each operand of an instruction."""
    return [
      self.computations[computation][o].bytes for o in instruction.operands
    ]

  @property
  def devices(self) -> int:
    """Number of replicas times partitions, one device each."""
    counts = re.findall(r'(?:replica_count|num_partitions)=(\d+)', self.header)
    return math.prod(map(int, counts))


@functools.lru_cache(maxsize=1)
def parse(text: str) -> Program:
  """Parses what compiled.as_text() prints.

  Raises:
    ValueError: if the text is not an HLO program.
  """
  header, *lines = text.split('\n')
  computations = {}
  entry = None
  # The computation that is being read, and the name of its root.
  computation = root = None
  for line in lines:
    if match := HEADER.match(line):
      computation = computations[match.group(2)] = {}
      entry = match.group(2) if match.group(1) else entry
    elif line == '}' and computation is not None:
      computation[root] = computation.pop(root)
      computation = None
    elif computation is not None:
      if match := INSTRUCTION.match(line):
        is_root, name, rest = match.groups()
        computation[name] = parse_instruction(name, rest)
        root = name if is_root else root
      elif computation:  # a line break inside the last one's attributes
        i = computation[name]
        computation[name] = i._replace(attributes=i.attributes + line)
  if entry is None:
    raise ValueError(f'not an HLO program: {text[:80]!r}')
  return Program(header, entry, computations)


def parse_instruction(name: str, rest: str) -> Instruction:
  """Splits `shape opcode(inside), attributes`."""
  end = closing_bracket(rest, 0) if rest[0] == '(' else rest.index(' ')
  opening = rest.index('(', end)
  last = closing_bracket(rest, opening)
  opcode = rest[end:opening].strip()
  inside, attributes = rest[opening + 1 : last - 1], rest[last:]
  return Instruction(name, rest[:end], opcode, inside, attributes)


def closing_bracket(text: str, start: int) -> int:
  """Returns the index after the bracket that closes the one at start."""
  depth = 0
  for match in BRACKET.finditer(text, start):
    depth += 1 if match.group() == '(' else -1
    if not depth:
      return match.end()
  raise ValueError(f'not HLO: a bracket is not closed in {text[:80]!r}')


def shape_bytes(shape: str) -> int:
  """Returns the bytes of bf16[8,128]{1,0} or of a tuple; 0 for a token."""
  total = 0
  for dtype, dims in ARRAY.findall(shape):
    elements = math.prod(map(int, re.findall(r'\d+', dims)))
    total += -(-item_bits(dtype) * elements // 8)
  return total


def dimensions(shape: str) -> list[tuple[int, ...]]:
  """Returns the dimensions of an array, or of each array of a tuple."""
  return [
    tuple(map(int, re.findall(r'\d+', dims)))
    for _, dims in ARRAY.findall(shape)
  ]


def item_bits(dtype: str) -> int:
  """Returns bits per element: bf16 16, f8e4m3fn 8, pred 8, token 0."""
  if dtype == 'pred':
    return 8
  return int((re.findall(r'\d+', dtype) or [0])[0])


def group(i: Instruction, devices: int) -> list[int]:
  """Returns the device ids of a collective's first group; all are alike.

  Ids count along the mesh. XLA prints groups in five notations.

  Raises:
    ValueError: for a sixth notation.
  """
  attributes = i.attributes
  # {{0,1},{2,3}}, of groups or of the pairs of a permutation.
  if match := re.search(r'(?:groups|pairs)=\{\{([\d,]+)\}', attributes):
    return integers(match.group(1))
  if match := re.search(r'replica_groups=\[([\d,]+)\](<=\S+)', attributes):
    ids = iota(match.group(2))  # [2,4]<=[4,2]T(1,0): one group per row
    return ids.reshape(integers(match.group(1)))[0].tolist()
  if match := re.search(
    r'replica_groups=mesh\[(.*?)\](.*?)\{(.*?)\}', attributes
  ):
    return mesh_group(*match.groups())
  if 'replica_groups={}' in attributes:  # one group of all devices
    return list(range(devices))
  raise ValueError(
    f'{i.name} has groups in an unknown notation: {attributes[:120]}'
  )


def iota(text: str) -> np.ndarray:
  """Returns 0, 1, ... in shape [4,2], transposed by T(1,0) if given."""
  shape, axes = re.search(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text).groups()
  ids = np.arange(math.prod(integers(shape))).reshape(integers(shape))
  return ids.transpose(integers(axes)) if axes else ids


def integers(text: str) -> list[int]:
  """Parses '1,2,3'."""
  return [int(n) for n in text.split(',')]


def mesh_group(mesh: str, device_ids: str, chosen: str) -> list[int]:
  """Returns the first group along some axes of a mesh.

  Args:
    mesh: names and sizes of the axes, 'x'=4,'y'=2.
    device_ids: order of the ids, an iota; empty for ascending order.
    chosen: axes of the group, 'x', or a factor of one: 'x':(m)k where the size
      of x is m * k * rest, from the slowest to the fastest.
  """
  sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  shape = list(sizes.values())
  ids = iota(device_ids if '[' in device_ids else str(shape).replace(' ', ''))
  picks = dict.fromkeys(sizes, [0])
  for axis, before, n in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen):
    n = int(n or sizes[axis])
    before = int(before or 1)
    picks[axis] = np.arange(n) * (sizes[axis] // (before * n))
  return ids.reshape(shape)[np.ix_(*picks.values())].ravel().tolist()
