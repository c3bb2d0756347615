"""Tests where the time of small programs goes, and that its parts add up."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh

from sdxl_jax.distributed import device_mesh
from sdxl_jax.planning import (
  chips,
  cost,
  hlo,
  hlo_flops,
  hlo_kinds,
  hlo_traffic,
  hlo_trip_counts,
  instruction_sites,
  machines,
  profile_report,
  program_profile,
  trace_file,
)
from tests.planning import cost_test

# In the style of the TPU compiler: a product with a bias and a fused sum, zeros
# and a copy without names, a kernel, a gather of parameters, all in a loop.
PROGRAM = """HloModule jit_gradients, num_partitions=4

%product (a: bf16[64,32], b: bf16[32,16]) -> bf16[64] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %conv = bf16[64,16]{1,0} convolution(%a, %b), dim_labels=bf_io->bf, \
metadata={op_name="jit(gradients)/transpose(jvp(UNet))/mid_block/attn1/to_q/\
dot_general"}
  %zero = bf16[] constant(0)
  ROOT %sum = bf16[64]{0} reduce(%conv, %zero), dimensions={1}, to_apply=%add
}

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %z = bf16[] add(%x, %y)
}

%slices (s: bf16[5,64,32], n: s32[]) -> bf16[64,32] {
  %s = bf16[5,64,32]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  %next.2 = s32[] add(%n, %zero.1)
  ROOT %ds = bf16[64,32]{1,0} dynamic-slice(%s, %next.2, %zero.1, %zero.1), \
dynamic_slice_sizes={1,64,32}
}

%condition (v: (s32[], bf16[5,64,32])) -> pred[] {
  %v = (s32[], bf16[5,64,32]) parameter(0)
  %i = s32[] get-tuple-element(%v), index=0
  %five = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %five), direction=LT
}

%body (v: (s32[], bf16[5,64,32])) -> (s32[], bf16[5,64,32]) {
  %v.1 = (s32[], bf16[5,64,32]) parameter(0)
  %i.1 = s32[] get-tuple-element(%v.1), index=0
  %stack = bf16[5,64,32] get-tuple-element(%v.1), index=1
  %row = bf16[64,32]{1,0} fusion(%stack, %i.1), kind=kLoop, calls=%slices, \
CYCLES(30)
  %copied = bf16[64,32]{0,1} copy(%row), CYCLES(20)
  %w = bf16[32,4]{1,0} constant({...})
  %gathered = bf16[32,16]{1,0} all-gather(%w), replica_groups={{0,1,2,3}}, \
metadata={op_name="jit(gradients)/jvp(UNet)/mid_block/attn1/to_q/dot_general"}
  %out = bf16[64]{0} fusion(%copied, %gathered), kind=kOutput, \
calls=%product, CYCLES(100)
  %flash = bf16[64,32]{1,0} custom-call(%copied), \
custom_call_target="tpu_custom_call", metadata={op_name="jit(gradients)/\
jvp(UNet)/mid_block/attn1/splash_mha/pallas_call"}
  %one = s32[] constant(1)
  %next = s32[] add(%i.1, %one)
  ROOT %t = (s32[], bf16[5,64,32]) tuple(%next, %stack)
}

ENTRY %main (p: bf16[5,64,32]) -> bf16[5,64,32] {
  %p = bf16[5,64,32]{2,1,0} parameter(0)
  %fill = bf16[] constant(0)
  %zeros = bf16[5,64,32]{2,1,0} broadcast(%fill), CYCLES(50)
  %begin = s32[] constant(0)
  %t.1 = (s32[], bf16[5,64,32]) tuple(%begin, %zeros)
  %while = (s32[], bf16[5,64,32]) while(%t.1), condition=%condition, \
body=%body, metadata={op_name="jit(gradients)/jvp(UNet)/mid_block/while"}
  ROOT %end = bf16[5,64,32] get-tuple-element(%while), index=1
}
"""
for CYCLES in (30, 20, 100, 50):
  PROGRAM = PROGRAM.replace(
    f'CYCLES({CYCLES})', f'backend_config={{"estimated_cycles":"{CYCLES}"}}'
  )


def machine(chip):
  return machines.Machine(chip, Mesh(np.array(jax.devices()), 'x'))


def as_platform(monkeypatch, name):
  monkeypatch.setattr(device_mesh, 'platform', lambda mesh: name)


def jaxpr_with_kernel():
  """A product, and a kernel as the one in PROGRAM is called."""

  def body(x, out):
    out[...] = jnp.dot(x[...], x[...].T) @ x[...]

  def f(x):
    with jax.named_scope('splash_mha'):
      y = pl.pallas_call(body, out_shape=x)(x)
    return y @ x.T

  return jax.make_jaxpr(f)(jnp.ones((64, 32), jnp.bfloat16))


@pytest.fixture
def tpu(monkeypatch):
  as_platform(monkeypatch, 'tpu')
  return machine(chips.TPUS['v5p'])


def test_parts_of_a_tpu_add_up(tpu):
  jaxpr = jaxpr_with_kernel()
  found = program_profile.profile(tpu, 'step', PROGRAM, jaxpr)
  assert found.seconds == tpu.seconds(PROGRAM, jaxpr)
  assert found.total == pytest.approx(found.seconds, rel=1e-12)
  assert found.scale == pytest.approx(1, rel=1e-12)
  kinds = {name: s.whole for name, s in found.grouped(kind_of).items()}
  assert sum(kinds.values()) == pytest.approx(1)
  cycles = {
    name: share * found.seconds * tpu.chip.clock
    for name, share in kinds.items()
  }
  assert cycles['products'] == pytest.approx(5 * 100)
  assert cycles['copies, layout'] == pytest.approx(5 * 20)
  assert cycles['loop bookkeeping'] == pytest.approx(5 * 30 + 50)
  link, peak = tpu.chip.link, 0.5 * tpu.chip.flops
  received = 5 * 3 * 32 * 4 * 2
  in_kernel = 5 * 2 * (2 * 64 * 64 * 32)
  shares = found.seconds * np.array([kinds['collectives'], kinds['attention']])
  assert shares == pytest.approx([received / link, in_kernel / peak])


def kind_of(part):
  return part.kind


def test_places_of_what_has_no_name():
  program = hlo.parse(PROGRAM)
  places = instruction_sites.Places(program)
  sites = {
    i.name: places.find(computation, i).site
    for computation, i, _ in hlo_trip_counts.top_level(program)
  }
  # The zeros go into the loop, and a slice where what is made of it belongs.
  assert sites['zeros'].block == sites['row'].block == 'UNet mid_block'
  assert sites['copied'].layer == 'self-attention'
  assert sites['out'].phase == 'backward' and sites['flash'].phase == 'forward'


def test_parts_of_a_gpu_are_scaled(monkeypatch):
  as_platform(monkeypatch, 'gpu')
  gpu = machine(chips.GPUS['h100'])
  w, x = jnp.ones((3, 256, 256)), jnp.ones((64, 256))
  traced = jax.jit(cost_test.chain).trace(w, x)
  text = traced.lower().compile().as_text()
  found = program_profile.profile(gpu, 'chain', text, traced.jaxpr)
  assert found.total == pytest.approx(gpu.seconds(text, traced.jaxpr))
  # Each instruction waits for the larger of two, all for the larger of sums.
  assert found.scale <= 1
  ratio = f'{1 / found.scale:.2f} times the seconds of the plan'
  assert ratio in profile_report.to_text(found, 'gpu')


def test_flops_in_the_text_are_those_of_the_jaxpr():
  def f(w, x, kernel):
    y = cost_test.chain(w, x).reshape(4, 16, 16, 128)
    y = lax.conv_general_dilated(
      y, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    return jnp.sum(jax.nn.dot_product_attention(y, y, y) ** 2)

  arguments = [(5, 128, 128), (1024, 128), (3, 3, 128, 64)]
  arguments = [cost_test.zeros(*shape) for shape in arguments]
  traced = jax.jit(jax.grad(f, (0, 1, 2))).trace(*arguments)
  program = hlo.parse(traced.lower().compile().as_text())
  counted = sum(
    runs * hlo_flops.flops(program, name, i)
    for name, i, runs in hlo_trip_counts.top_level(program)
  )
  assert counted == pytest.approx(cost.flops(traced.jaxpr), rel=0.01)


X, K, OUT = 'f32[8,16,16,4]', 'f32[3,3,4,6]', 'f32[8,16,16,6]'
ONE = 2 * (8 * 16 * 16 * 6) * (3 * 3 * 4)


@pytest.mark.parametrize(
  'call, operands, result',
  [
    ('Forward', (X, K), OUT),
    ('BackwardInput', (OUT, K), X),
    ('BackwardFilter', (X, OUT), K),
  ],
)
def test_flops_of_cudnn(call, operands, result):
  x, y = operands
  text = (
    f'HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {{\n  %x = {x} '
    f'parameter(0)\n  %y = {y} parameter(1)\n  ROOT %c = ({result}, u8[99]) '
    'custom-call(%x, %y), window={size=3x3}, dim_labels=b01f_01io->b01f, '
    f'custom_call_target="__cudnn$conv{call}"\n}}\n'
  )
  program = hlo.parse(text)
  conv = program.root('main')
  assert hlo_flops.flops(program, 'main', conv) == ONE
  # The workspace that it may use is no result.
  written = hlo_traffic.bytes_written(program, 'main', conv)
  assert written == hlo.shape_bytes(result)
  assert hlo_kinds.kind(program, 'main', conv)[0] == hlo_kinds.CONVOLUTIONS


@pytest.mark.parametrize(
  'line, kind',
  [
    ('f32[8] dot(%a, %b), op_name="jit(f)/x/dot_general"', 'products'),
    (
      'f32[8] dot(%a, %b), op_name="jit(f)/attn1/vmap(BTNH,BSNH->BNTS)/dot"',
      'attention',
    ),
    (
      'f32[8] convolution(%a, %b), op_name="jit(f)/x/dot_general"',
      'products',
    ),
    (
      'f32[8] dot(%a, %b), op_name="jit(f)/x/conv_general_dilated"',
      'convolutions',
    ),
    ('f32[8] reduce(%a, %b)', 'norms, reductions'),
    ('f32[8] transpose(%a)', 'copies, layout'),
    ('f32[8] convert(%a)', 'conversions'),
    ('f32[8] dynamic-update-slice(%a, %b)', 'loop bookkeeping'),
    ('f32[8] broadcast(%a)', 'loop bookkeeping'),
    ('f32[8] multiply(%a, %b)', 'other elementwise'),
    ('f32[8] all-reduce-start(%a)', 'collectives'),
    ('f32[8] gather(%a, %b)', 'gathers, others'),
    ('f32[8] custom-call(%a), custom_call_target="__cublas$gemm"', 'products'),
    (
      'f32[8] custom-call(%a), custom_call_target="__cudnn$fmhaSoftmax"',
      'attention',
    ),
    (
      'f32[8] custom-call(%a), custom_call_target="tpu_custom_call", '
      'op_name="jit(f)/my_norm/pallas_call"',
      'other kernels',
    ),
  ],
)
def test_kinds(line, kind):
  i = hlo.parse_instruction('i', line)
  assert hlo_kinds.kind(None, 'main', i)[0] == kind
  assert kind in hlo_kinds.KINDS


def test_trace(tpu, tmp_path):
  found = program_profile.profile(tpu, 'step', PROGRAM, jaxpr_with_kernel())
  # Long enough for whole ns to matter little.
  found = found.repeated(1e6)
  trace_file.write(tmp_path / 't.json.gz', [found, found], 'each of 4')
  content = json.loads(gzip.decompress((tmp_path / 't.json.gz').read_bytes()))
  events = [e for e in content['traceEvents'] if e['ph'] == 'X']
  programs = [e for e in events if e['name'] == 'step']
  assert len(programs) == 2
  assert programs[1]['ts'] == pytest.approx(programs[0]['dur'])
  leaves = [e for e in events if 'runs' in e['args']]
  assert [e['name'] for e in leaves[:2]] == ['zeros', 'row']
  assert {e['name']: e['args']['runs'] for e in leaves}['out'] == 5
  total = sum(e['dur'] for e in leaves)
  assert total == pytest.approx(2e6 * found.seconds, rel=1e-6)
  # Slices of a track lie inside one another or apart.
  ends = []
  for event in events:
    start, end = event['ts'], event['ts'] + event['dur']
    while ends and ends[-1] <= start + 1e-6:
      ends.pop()
    assert not ends or end <= ends[-1] + 1e-6, event
    ends.append(end)
  assert {e['name'] for e in events} >= {'forward', 'UNet', 'mid_block'}


def test_tables(tpu):
  found = program_profile.profile(tpu, 'step', PROGRAM, jaxpr_with_kernel())
  text = profile_report.to_text(found, 'tpu')
  header = next(line for line in text.splitlines() if 'kind' in line)
  assert header.split() == ['kind', 'share', 'forward', 'backward']
  figures = profile_report.to_json(found, 'tpu')
  for table in ('kinds', 'blocks', 'layers', 'modules'):
    shares = [row['share'] for row in figures[table].values()]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
  assert figures['seconds'] == found.seconds
  assert list(figures['modules'])[0].startswith('UNet mid_block: ')


def test_long_tables_are_shortened(tpu):
  found = program_profile.profile(tpu, 'step', PROGRAM, jaxpr_with_kernel())
  part = found.parts[0]
  parts = [part._replace(kind=f'kind {n}') for n in range(20)]
  rows = profile_report.rows(found._replace(parts=parts), kind_of)
  assert len(rows) == profile_report.MOST_ROWS
  assert rows[-1][0] == '7 more'
  assert sum(share.whole for _, share in rows) == pytest.approx(1)


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_a_machine_whose_speed_is_not_known(platform, monkeypatch):
  """As `here`: there are shares, and no seconds."""
  as_platform(monkeypatch, platform)
  here = machine(chips.Chip('here'))
  found = program_profile.profile(here, 'step', PROGRAM, jaxpr_with_kernel())
  assert found.seconds is None and found.total > 0
  text = profile_report.to_text(found, platform)
  assert text.startswith('profile of step\n')
  assert 'the speed of this machine is not known' in text
  joined = program_profile.joined('both', [found, found.repeated(2)])
  assert joined.seconds is None
  assert joined.total == pytest.approx(3 * found.total)
