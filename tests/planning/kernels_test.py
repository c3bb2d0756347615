"""Tests what a kernel in a compiled text costs, by kernels in the jaxpr."""

import jax
import pytest
from jax import lax

from sdxl_jax.planning import cost, hlo, kernels
from tests.planning import cost_test

TEXT = """HloModule jit_step

ENTRY %main (q: bf16[2,64,128]) -> bf16[2,128,64] {
  %q = bf16[2,64,128]{2,1,0} parameter(0)
  %mask = s8[1,2,1]{2,1,0} constant({...})
  ROOT %call = (bf16[2,128,64]{2,1,0}, f32[]) custom-call(%mask, %q), \
custom_call_target="TARGET", metadata={op_name="jit(f)/named/pallas_call"}
}
"""
CALL = kernels.Call('named', ((1, 2, 1), (2, 64, 128)), ((2, 128, 64), ()))


@pytest.mark.parametrize('target', kernels.PALLAS)
def test_calls_in_the_text(target):
  text = TEXT.replace('TARGET', target)
  (kernel,) = cost.cycles(text).kernels
  assert kernel.call == CALL and kernel.runs == 1
  assert kernel.bytes == 2 + 2 * 2 * (2 * 64 * 128) + 4


def test_other_calls_are_no_kernels():
  assert not cost.cycles(TEXT.replace('TARGET', 'Sharding')).kernels


def test_the_call_that_costs_the_same():
  other = CALL._replace(results=((4, 128, 64),))
  each = {CALL: 7, other: 9, CALL._replace(name='others'): 11}
  assert kernels.flops_of_call(CALL, each) == 7
  # Operands that XLA has left out: the results decide.
  fewer = CALL._replace(operands=((2, 64, 128),))
  assert kernels.flops_of_call(fewer, each) == 7
  # Results that it has padded: the name, if all of that name cost the same.
  padded = CALL._replace(results=((2, 256, 64),))
  assert kernels.flops_of_call(padded, {CALL: 7}) == 7
  with pytest.raises(ValueError, match=r'named .* one of \[7, 9\] FLOPs'):
    kernels.flops_of_call(padded, each)
  assert kernels.flops_of_call(CALL._replace(name='unknown'), each) == 0


def test_names_without_a_scope():
  line = 'metadata={op_name="jit(f)/pallas_call"}'
  i = hlo.Instruction('k', 'f32[8]', 'custom-call', '', line)
  assert kernels.kernel_name(i) == kernels.UNNAMED


def test_flops_of_one_run_in_a_loop():
  """A scan runs the kernel again, and does not change what a run costs."""
  x, w = cost_test.zeros(512, 128), cost_test.zeros(128, 128)

  def f(x, w):
    with jax.named_scope('named'):
      return lax.scan(lambda x, _: (cost_test.kernel(x, w), None), x, length=5)

  each = cost.kernel_flops(jax.make_jaxpr(f)(x, w))
  assert list(each.values()) == [2 * 512 * 128 * 128]
