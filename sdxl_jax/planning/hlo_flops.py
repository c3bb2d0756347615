"""Counts the FLOPs of products in the text of a compiled program.

Functions take a Program, the name of a computation and an instruction in it.
"""

import math
import re

from sdxl_jax.planning import hlo, hlo_kinds


def flops(program: hlo.Program, computation: str, i: hlo.Instruction) -> int:
  """Returns the FLOPs of all products in an instruction, fused ones too.

  Of kernels that are not in the text, as Pallas', none are counted.
  """
  return sum(
    single(program, name, x)
    for name, x in hlo_kinds.inside(program, computation, i)
  )


def single(program: hlo.Program, computation: str, i: hlo.Instruction) -> int:
  """Returns the FLOPs of an instruction that is no fusion."""
  target = hlo_kinds.custom_target(i)
  if not (i.opcode in ('dot', 'convolution') or target.startswith('__')):
    return 0
  shapes = [
    first(program.computations[computation][o].shape) for o in i.operands
  ]
  if i.opcode == 'convolution' or 'conv' in target:
    return convolution_flops(i, target, shapes)
  if 'fmha' in target:
    return attention_flops(i, target, shapes)
  return dot_flops(i, shapes)


def first(shape: str) -> tuple[int, ...]:
  """Returns the dimensions of an array, or of the first one of a tuple."""
  return next(iter(hlo.dimensions(shape)), ())


def dot_flops(i: hlo.Instruction, shapes: list[tuple[int, ...]]) -> int:
  """Counts a product by the sides that are summed; 0 where none are given."""
  found = re.search(
    r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', i.attributes
  )
  if not found:
    return 0
  summed = [int(n) for n in re.findall(r'\d+', found.group(1))]
  return 2 * math.prod(first(i.shape)) * math.prod(shapes[0][d] for d in summed)


def convolution_flops(
  i: hlo.Instruction, target: str, shapes: list[tuple[int, ...]]
) -> int:
  """Counts a convolution as its forward pass would be counted.

  Each output is a sum over a window of the inputs. cuDNN's calls for gradients
  name the roles of the forward pass.
  """
  kernel, result = shapes[1], first(i.shape)
  if 'BackwardInput' in target:
    result = shapes[0]
  elif 'BackwardFilter' in target:
    kernel, result = result, shapes[1]
  labels = re.search(r'dim_labels=\w+_(\w+)->', i.attributes).group(1)
  features = kernel[labels.index('o')]
  # One in so many inputs is not a zero that lhs_dilate inserted.
  dilation = re.search(r'lhs_dilate=([\dx]+)', i.attributes)
  zeros = math.prod(map(int, dilation.group(1).split('x'))) if dilation else 1
  return 2 * math.prod(result) * math.prod(kernel) // features // zeros


def attention_flops(
  i: hlo.Instruction, target: str, shapes: list[tuple[int, ...]]
) -> int:
  """Counts cuDNN's attention by the weights that it never writes.

  Forward two products of weights and heads, backward five.
  """
  found = re.search(
    r'"intermediate_tensor_shape":\{.*?"dimensions":\[([\d,"]*)\]',
    i.attributes,
  )
  if not found:
    return 0
  weights = math.prod(map(int, re.findall(r'\d+', found.group(1))))
  products = 5 if 'Backward' in target else 2
  return 2 * products * weights * shapes[0][-1]
