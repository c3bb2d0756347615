"""What a step costs: memory, FLOPs, cycles, traffic; nothing is run.

FLOPs are counted in the jaxpr and are the same on all hardware. Memory, cycles
and traffic are those of one device, read from the compiled program.
"""

import collections
import math
import re
from typing import NamedTuple

import jax.extend
import numpy as np

from sdxl_jax.planning import hlo, hlo_traffic, hlo_trip_counts


class Memory(NamedTuple):
  """Bytes on one device."""

  arguments: int
  outputs: int
  aliased: int  # outputs that live where donated arguments did
  temporaries: int
  peak: int


def memory(compiled):
  """Memory of a compiled step as its compiler lays it out.

  Where a backend tells no peak, it is arguments + outputs - aliased +
  temporaries. On TPUs the compiler's peak may lie below that sum and is what it
  holds against the chip: it refuses what does not fit.
  """
  m = compiled.memory_analysis()
  arguments, outputs = m.argument_size_in_bytes, m.output_size_in_bytes
  aliased, temporaries = m.alias_size_in_bytes, m.temp_size_in_bytes
  peak = getattr(m, 'peak_memory_in_bytes', 0)
  peak = peak or arguments + outputs - aliased + temporaries
  return Memory(arguments, outputs, aliased, temporaries, peak)


UNNAMED = 'pallas_call'


class Kernel(NamedTuple):
  """A Pallas kernel of the program; bytes are read and written in each run."""

  name: str
  runs: int
  bytes: int


class Cycles(NamedTuple):
  estimated: int
  kernels: list  # of Kernel, for which the compiler estimates nothing


def cycles(text):
  """The TPU compiler's estimate for all but kernels and collectives."""
  program = hlo.parse(text)
  estimated, kernels = 0, []
  for name, i, runs in hlo_trip_counts.top_level(program):
    if match := re.search(r'"estimated_cycles":"(\d+)"', i.attributes):
      estimated += int(match.group(1)) * runs
    if 'custom_call_target="tpu_custom_call"' in i.attributes:
      size = i.bytes + sum(program.operand_bytes(name, i))
      kernels.append(Kernel(kernel_name(i), runs, size))
  return Cycles(estimated, kernels)


def kernel_name(i):
  """As flops_by_kernel calls it."""
  match = re.search(r'op_name="[^"]*?([^"/]+)/pallas_call', i.attributes)
  return match.group(1) if match and '(' not in match.group(1) else UNNAMED


def collectives(text, beyond=1):
  """{kind: bytes} that one device receives from others in one run.

  With beyond=8, only where a group reaches beyond a node of eight devices, so
  that bytes cross the network between nodes.
  """
  program = hlo.parse(text)
  totals = dict.fromkeys(hlo_traffic.RECEIVED, 0.0)
  for name, i, runs in hlo_trip_counts.top_level(program):
    for kind, received, group in hlo_traffic.exchanges(program, name, i):
      if len({device // beyond for device in group}) > 1:
        totals[kind] += received * runs
  return totals


def bytes_accessed(text):
  """Bytes that one device reads and writes in one run, for a roofline.

  Operands and results of each instruction that the device is told to do, as
  often as it runs; of what is sliced or updated in place, only the slice.
  """
  program = hlo.parse(text)
  return sum(
    runs
    * (
      hlo_traffic.read(program, name, i) + hlo_traffic.written(program, name, i)
    )
    for name, i, runs in hlo_trip_counts.top_level(program)
  )


def flops(jaxpr):
  """FLOPs of the matmuls and convolutions of a ClosedJaxpr, on all devices.

  Two per multiply-add. Zeros that a transposed convolution puts between its
  inputs are not counted, those of its padding are. Of a cond the dearest branch
  counts, of a Pallas kernel its whole grid.

  Raises:
    ValueError: for matmuls in a loop or grid of unknown length.
  """
  return sum(flops_by_kernel(jaxpr).values())


def flops_by_kernel(jaxpr):
  """{name of a Pallas kernel: FLOPs}; None stands for all outside of them."""
  totals = collections.Counter()
  for e in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    if e.primitive.name in PRODUCTS:
      totals[None] += PRODUCTS[e.primitive.name](e)
      continue
    bodies = [flops_by_kernel(j) for j in subjaxprs(e.params)]
    if e.primitive.name == 'cond':
      bodies = [max(bodies, key=lambda body: body.total())]
    if not (body := sum(bodies, collections.Counter())):
      continue
    if e.primitive.name == 'pallas_call':
      stack = str(e.source_info.name_stack).split('/')[-1]
      body = {e.params['name'] or stack or UNNAMED: body.total()}
    n = times(e)
    totals.update({name: n * count for name, count in body.items()})
  return totals


def subjaxprs(params):
  kinds = (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)
  leaves = [
    x for p in params.values() for x in (p if isinstance(p, tuple) else [p])
  ]
  return [x for x in leaves if isinstance(x, kinds)]


def times(e):
  """How often the jaxprs of an equation run, on all devices together."""
  name = e.primitive.name
  if name == 'scan':
    return e.params['length']
  if name == 'shard_map':
    shape = e.params['mesh'].shape
    return math.prod(shape[axis] for axis in e.params['newly_manual_axes'])
  if name == 'pallas_call':
    grid = e.params['grid_mapping'].grid
    if all(isinstance(side, int) for side in grid):
      return math.prod(grid)
  elif name != 'while':
    return 1
  raise ValueError(
    f'FLOPs of a {name} of unknown length cannot be counted; give it a length '
    'known when traced, such as that of lax.scan'
  )


def dot_flops(e):
  (contracted, _), _ = e.params['dimension_numbers']
  lhs = e.invars[0].aval.shape
  return 2 * e.outvars[0].aval.size * math.prod(lhs[d] for d in contracted)


def conv_flops(e):
  rhs = e.invars[1].aval.shape
  out_features = rhs[e.params['dimension_numbers'].rhs_spec[0]]
  # Of the inputs, those between are zeros put in by the dilation.
  zeros = math.prod(e.params['lhs_dilation'])
  kernel = np.prod(rhs, dtype=int) // out_features
  return 2 * e.outvars[0].aval.size * int(kernel) // zeros


PRODUCTS = {'dot_general': dot_flops, 'conv_general_dilated': conv_flops}


def table(columns, things):
  """Text of one line for each thing; columns are (name, show(thing))."""
  rows = [[name for name, _ in columns]]
  rows += [[show(thing) for _, show in columns] for thing in things]
  widths = [max(map(len, column)) for column in zip(*rows)]
  line = lambda cells: '  '.join(x.rjust(w) for x, w in zip(cells, widths))
  return '\n'.join(map(line, rows))
