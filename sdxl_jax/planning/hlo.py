"""Compiled programs as text: what XLA's HLO says.

`compiled.as_text()` prints XLA's HLO, one instruction per line:

  %name = bf16[8,128]{1,0} opcode(%operand, ...), attribute=value, ...

in computations that call one another; text on TPUs, GPUs and CPUs differs in
its attributes only.
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
  name: str
  shape: str  # as printed; in brackets where it is a tuple
  opcode: str
  inside: str  # what stands in the opcode's brackets
  attributes: str

  @property
  def operands(self):
    return re.findall(r'%([\w.\-]+)', self.inside)

  @property
  def bytes(self):
    """Of its result; a tuple's elements are summed."""
    return shape_bytes(self.shape)

  def called(self, attribute):
    """The computation that attribute=%name names, None where it is absent."""
    match = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return match and match.group(1)


class Program(NamedTuple):
  header: str
  entry: str
  computations: dict  # name > {name: Instruction}; the root is the last

  def root(self, computation):
    return list(self.computations[computation].values())[-1]

  def operand_bytes(self, computation, instruction):
    return [
      self.computations[computation][o].bytes for o in instruction.operands
    ]

  @property
  def devices(self):
    """Replicas times partitions, one device each."""
    counts = re.findall(r'(?:replica_count|num_partitions)=(\d+)', self.header)
    return math.prod(map(int, counts))


@functools.lru_cache(maxsize=1)
def parse(text):
  """The Program that as_text() prints.

  Raises:
    ValueError: where the text is none.
  """
  header, *lines = text.split('\n')
  entry, computation, root, computations = None, None, None, {}
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
        computation[name] = instruction(name, rest)
        root = name if is_root else root
      elif computation:  # some attributes hold line breaks
        i = computation[name]
        computation[name] = i._replace(attributes=i.attributes + line)
  if entry is None:
    raise ValueError(f'no HLO program: {text[:80]!r}')
  return Program(header, entry, computations)


def instruction(name, rest):
  end = closing(rest, 0) if rest[0] == '(' else rest.index(' ')
  opening = rest.index('(', end)
  last = closing(rest, opening)
  opcode = rest[end:opening].strip()
  inside, attributes = rest[opening + 1 : last - 1], rest[last:]
  return Instruction(name, rest[:end], opcode, inside, attributes)


def closing(text, start):
  """Where the bracket that opens at start has closed."""
  depth = 0
  for match in BRACKET.finditer(text, start):
    depth += 1 if match.group() == '(' else -1
    if not depth:
      return match.end()
  raise ValueError(f'no HLO: a bracket stays open in {text[:80]!r}')


def shape_bytes(shape):
  """Bytes of bf16[8,128]{1,0} or of a tuple of such; tokens have none."""
  total = 0
  for dtype, dims in ARRAY.findall(shape):
    elements = math.prod(map(int, re.findall(r'\d+', dims)))
    total += -(-item_bits(dtype) * elements // 8)
  return total


def item_bits(dtype):
  """bf16 > 16, f8e4m3fn > 8; a pred takes a byte, a token nothing."""
  if dtype == 'pred':
    return 8
  return int((re.findall(r'\d+', dtype) or [0])[0])


def group(i, devices):
  """Ids of the devices of a collective's first group, the others being alike.

  They count along the mesh. XLA has five notations of groups.
  """
  a = i.attributes
  if match := re.search(r'(?:groups|pairs)=\{\{([\d,]+)\}', a):  # {{0,1},{2,3}}
    return integers(match.group(1))
  if match := re.search(r'replica_groups=\[([\d,]+)\](<=\S+)', a):
    ids = iota(match.group(2))  # [2,4]<=[4,2]T(1,0): groups are rows
    return list(ids.reshape(integers(match.group(1)))[0])
  if match := re.search(r'replica_groups=mesh\[(.*?)\](.*?)\{(.*?)\}', a):
    return mesh_group(*match.groups())
  if 'replica_groups={}' in a:  # all
    return list(range(devices))
  raise ValueError(f'{i.name} has groups of a form unknown here: {a[:120]}')


def iota(text):
  """[4,2]T(1,0): 0..7 as an array of that shape, then transposed."""
  shape, axes = re.search(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text).groups()
  ids = np.arange(math.prod(integers(shape))).reshape(integers(shape))
  return ids.transpose(integers(axes)) if axes else ids


def integers(text):
  return [int(n) for n in text.split(',')]


def mesh_group(mesh, device_ids, chosen):
  """'x'=4,'y'=2 and 'x': along x; of 'x':(2)2, x in parts of 2, one part."""
  sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  shape = list(sizes.values())
  ids = iota(device_ids if '[' in device_ids else str(shape).replace(' ', ''))
  picks = dict.fromkeys(sizes, [0])
  for axis, before, n in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", chosen):
    n, before = int(n or sizes[axis]), int(before or 1)
    picks[axis] = np.arange(n) * (sizes[axis] // (before * n))
  return list(ids.reshape(shape)[np.ix_(*picks.values())].ravel())
