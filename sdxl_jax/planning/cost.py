"""Computes what a step costs: memory, FLOPs, cycles, traffic; runs nothing.

FLOPs are counted in the jaxpr and do not depend on the hardware. Memory, cycles
and traffic are per device and read from the compiled program.
"""

import collections
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.extend
import numpy as np

from sdxl_jax.planning import hlo, hlo_traffic, hlo_trip_counts, kernels

Jaxpr = jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr


class Memory(NamedTuple):
  """Bytes on one device."""

  arguments: int
  outputs: int
  aliased: int  # outputs that reuse the memory of donated arguments
  temporaries: int
  peak: int


def memory(compiled: jax.stages.Compiled) -> Memory:
  """Returns the memory of a compiled step, as its compiler plans it.

  If a backend reports no peak, the peak is arguments + outputs - aliased +
  temporaries. On TPUs the compiler's peak may lie below that sum and is the
  number that it compares with the memory of the chip: it refuses a program
  that does not fit.
  """
  m = compiled.memory_analysis()
  arguments, outputs = m.argument_size_in_bytes, m.output_size_in_bytes
  aliased, temporaries = m.alias_size_in_bytes, m.temp_size_in_bytes
  peak = getattr(m, 'peak_memory_in_bytes', 0)
  peak = peak or arguments + outputs - aliased + temporaries
  return Memory(arguments, outputs, aliased, temporaries, peak)


class Cycles(NamedTuple):
  """Cycles of a TPU program."""

  estimated: int
  kernels: list[kernels.Kernel]  # not part of the estimate


def cycles(text: str) -> Cycles:
  """Sums the TPU compiler's estimates, which omit kernels and collectives.

  Args:
    text: of the compiled program.

  Raises:
    ValueError: if a loop has an unknown trip count, or the text is not HLO.
  """
  program = hlo.parse(text)
  estimated = 0
  called = []
  for name, i, runs in hlo_trip_counts.top_level(program):
    estimated += estimated_cycles(i) * runs
    if kernels.is_kernel(i):
      size = i.bytes + sum(program.operand_bytes(name, i))
      call = kernels.call_of(program, name, i)
      called.append(kernels.Kernel(call, runs, size))
  return Cycles(estimated, called)


def estimated_cycles(i: hlo.Instruction) -> int:
  """Returns the TPU compiler's estimate of one run, 0 where it has none."""
  match = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
  return int(match.group(1)) if match else 0


def collectives(text: str) -> dict[str, float]:
  """Returns {kind: bytes} that one device receives from others in one run.

  Args:
    text: of the compiled program.

  Raises:
    ValueError: if a loop has an unknown trip count, or the text is not HLO.
  """
  program = hlo.parse(text)
  totals = dict.fromkeys(hlo_traffic.RECEIVED, 0.0)
  for name, i, runs in hlo_trip_counts.top_level(program):
    for collective in hlo_traffic.collectives_of(program, name, i):
      totals[collective.kind] += collective.received * runs
  return totals


def bytes_accessed(text: str) -> int:
  """Returns the bytes that one device reads and writes, for a roofline.

  Counts operands and results of each instruction, times its runs; of operands
  that are sliced or updated in place, only the slice.

  Args:
    text: of the compiled program.

  Raises:
    ValueError: if a loop has an unknown trip count, or the text is not HLO.
  """
  program = hlo.parse(text)
  total = 0
  for name, i, runs in hlo_trip_counts.top_level(program):
    read = hlo_traffic.bytes_read(program, name, i)
    total += runs * (read + hlo_traffic.bytes_written(program, name, i))
  return total


def flops(jaxpr: Jaxpr) -> int:
  """Counts the FLOPs of matmuls and convolutions, summed over all devices.

  Two per multiply-add. Zeros that a transposed convolution inserts between its
  inputs are not counted; those of padding are. Of a cond the branch with the
  most FLOPs counts, of a Pallas kernel the whole grid.

  Raises:
    ValueError: for matmuls in a loop or grid of unknown length.
  """
  return sum(flops_by_kernel(jaxpr).values())


def flops_by_kernel(jaxpr: Jaxpr) -> collections.Counter:
  """Returns {name of a Pallas kernel: FLOPs}; None: all outside of kernels.

  Raises:
    ValueError: for matmuls in a loop or grid of unknown length.
  """
  totals = collections.Counter()
  for e in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    if e.primitive.name in PRODUCTS:
      totals[None] += PRODUCTS[e.primitive.name](e)
      continue
    # Count inside the equation: loops, calls, branches, kernels.
    bodies = [flops_by_kernel(j) for j in subjaxprs(e.params)]
    if e.primitive.name == 'cond':
      bodies = [max(bodies, key=lambda body: body.total())]
    if not (body := sum(bodies, collections.Counter())):
      continue
    if e.primitive.name == 'pallas_call':
      body = {scope_of(e): body.total()}
    n = repetitions(e)
    totals.update({name: n * count for name, count in body.items()})
  return totals


def scope_of(e: jax.extend.core.JaxprEqn) -> str:
  """Returns the name of a Pallas kernel: that of the scope it stands in."""
  return str(e.source_info.name_stack).split('/')[-1] or kernels.UNNAMED


def kernel_flops(jaxpr: Jaxpr) -> dict[kernels.Call, int]:
  """Returns {call of a Pallas kernel: FLOPs of one run on one device}.

  Raises:
    ValueError: for a kernel with a grid of unknown size.
  """
  found = {}
  for e in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
    if e.primitive.name != 'pallas_call':
      for body in subjaxprs(e.params):
        found |= kernel_flops(body)
    elif body := sum(map(flops, subjaxprs(e.params))):
      shapes = [tuple(x.aval.shape for x in e.invars)]
      shapes.append(tuple(x.aval.shape for x in e.outvars))
      found[kernels.Call(scope_of(e), *shapes)] = body * repetitions(e)
  return found


def compiled_kernel_flops(text: str, jaxpr: Jaxpr) -> int:
  """Returns the FLOPs of the kernels that one device runs.

  What a run costs is in the jaxpr, and how often it runs in the compiled text:
  of the forward runs that rematerialisation repeats in the jaxpr, the compiler
  removes those whose results are kept.

  Raises:
    ValueError: if the text has a kernel whose cost is ambiguous, a loop of
      unknown trip count, or is not HLO.
  """
  each = kernel_flops(jaxpr)
  return sum(
    k.runs * kernels.flops_of_call(k.call, each) for k in cycles(text).kernels
  )


def compiled_flops(text: str, jaxpr: Jaxpr, devices: int) -> int:
  """Counts the FLOPs of all devices, of kernels those that the text runs."""
  in_kernels = devices * compiled_kernel_flops(text, jaxpr)
  return flops_by_kernel(jaxpr)[None] + in_kernels


def subjaxprs(params: Mapping[str, Any]) -> list[Jaxpr]:
  """Returns the jaxprs among the parameters of an equation."""
  leaves = [
    x for p in params.values() for x in (p if isinstance(p, tuple) else [p])
  ]
  return [x for x in leaves if isinstance(x, Jaxpr)]


def repetitions(e: jax.extend.core.JaxprEqn) -> int:
  """Returns how often the jaxprs of an equation run, over all devices.

  Raises:
    ValueError: for a loop or grid of unknown length.
  """
  name = e.primitive.name
  if name == 'scan':
    return e.params['length']
  if name == 'shard_map':
    shape, params = e.params['mesh'].shape, e.params
    # JAX 0.7 has the axes under the older name.
    axes = params.get('newly_manual_axes', params.get('manual_axes'))
    return math.prod(shape[axis] for axis in axes)
  if name == 'pallas_call':
    grid = e.params['grid_mapping'].grid
    if all(isinstance(side, int) for side in grid):
      return math.prod(grid)
  elif name != 'while':
    return 1
  raise ValueError(
    f'FLOPs of a {name} of unknown length cannot be counted; use a length '
    'known when traced, such as that of lax.scan'
  )


def dot_flops(e: jax.extend.core.JaxprEqn) -> int:
  """Counts the FLOPs of a dot_general."""
  (contracted, _), _ = e.params['dimension_numbers']
  lhs = e.invars[0].aval.shape
  return 2 * e.outvars[0].aval.size * math.prod(lhs[d] for d in contracted)


def conv_flops(e: jax.extend.core.JaxprEqn) -> int:
  """Counts the FLOPs of a conv_general_dilated."""
  rhs = e.invars[1].aval.shape
  out_features = rhs[e.params['dimension_numbers'].rhs_spec[0]]
  # One in so many inputs is not a zero that lhs_dilation inserted.
  dilation = math.prod(e.params['lhs_dilation'])
  kernel = np.prod(rhs, dtype=int) // out_features
  return 2 * e.outvars[0].aval.size * int(kernel) // dilation


PRODUCTS = {'dot_general': dot_flops, 'conv_general_dilated': conv_flops}
