"""Finds the Pallas kernels of a compiled program, and what one of them costs.

A kernel is known by its name and by the shapes that it is called with, in the
jaxpr and in the compiled text alike.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from sdxl_jax.planning import hlo

UNNAMED = 'pallas_call'
# What a Pallas kernel is called by in the text.
PALLAS = (
  'tpu_custom_call', '__gpu$xla.gpu.triton', 'triton_kernel_call',
  'triton_kernel_call_ffi', 'mosaic_gpu_v2',
)  # fmt: skip


class Call(NamedTuple):
  """What a Pallas kernel is called with, by which its cost is found."""

  name: str
  operands: tuple[tuple[int, ...], ...]  # dimensions
  results: tuple[tuple[int, ...], ...]


class Kernel(NamedTuple):
  """A Pallas kernel of the program."""

  call: Call
  runs: int
  bytes: int  # read and written in each run


def is_kernel(i: hlo.Instruction) -> bool:
  """Returns whether an instruction is a Pallas kernel of a TPU or a GPU."""
  return i.opcode == 'custom-call' and any(
    f'custom_call_target="{target}"' in i.attributes for target in PALLAS
  )


def call_of(program: hlo.Program, computation: str, i: hlo.Instruction) -> Call:
  """Returns the Call of a kernel in the text."""
  shapes = program.computations[computation]
  operands = [hlo.dimensions(shapes[o].shape) for o in i.operands]
  return Call(
    kernel_name(i),
    tuple(x for shape in operands for x in shape),
    tuple(hlo.dimensions(i.shape)),
  )


def kernel_name(i: hlo.Instruction) -> str:
  """Returns the name of a Pallas kernel, the same as in flops_by_kernel."""
  match = re.search(r'op_name="[^"]*?([^"/]+)/pallas_call', i.attributes)
  return match.group(1) if match and '(' not in match.group(1) else UNNAMED


def flops_of_call(call: Call, each: Mapping[Call, int]) -> int:
  """Returns the FLOPs of a kernel in the text, 0 for one without products.

  Args:
    call: in the text, where operands may have been left out or padded.
    each: what kernel_flops returns.

  Raises:
    ValueError: if kernels of its name and results cost differently.
  """
  if call in each:
    return each[call]
  alike = {c: n for c, n in each.items() if c.name == call.name}
  same = {n for c, n in alike.items() if c.results == call.results}
  counts = same or set(alike.values())
  if len(counts) > 1:
    raise ValueError(
      f'the kernel {call.name} with operands {call.operands} costs one of '
      f'{sorted(counts)} FLOPs: give each of these kernels a name of its own '
      'by jax.named_scope'
    )
  return counts.pop() if counts else 0
