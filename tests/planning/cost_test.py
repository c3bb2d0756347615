"""Compares costs of small programs with counts made by hand."""

import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdxl_jax.models import attention
from sdxl_jax.planning import (
  cost,
  hlo,
  hlo_traffic,
  hlo_trip_counts,
  kernels,
  topology,
)

P = PartitionSpec


def zeros(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def flops(f, *args):
  return cost.flops(jax.make_jaxpr(f)(*args))


def chain(w, x):
  """Applies one matmul with tanh to x per layer of w [layers, n, n]."""
  return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def compile_chain(devices, layers, n=256, rows=64, dtype=jnp.float32):
  """Compiles a gradient step of a chain, fully sharded over all devices."""
  mesh = Mesh(np.array(devices), 'x')
  split = NamedSharding(mesh, P(None, 'x'))
  w = jax.ShapeDtypeStruct((layers, n, n), dtype, sharding=split)
  x = NamedSharding(mesh, P('x'))
  x = jax.ShapeDtypeStruct((rows * len(devices), n), dtype, sharding=x)

  def loss(w, x):
    return jnp.mean(chain(w, x) ** 2)

  def step(w, x):
    return w - jax.grad(loss)(w, x)

  jit = jax.jit(step, donate_argnums=0, out_shardings=split)
  return jit.lower(w, x).compile()


def test_flops_of_scans():
  w, x = zeros(7, 16, 16), zeros(8, 16)
  one = 2 * 8 * 16 * 16
  assert flops(chain, w, x) == 7 * one

  def nested(w, x):
    return lax.fori_loop(0, 3, lambda i, x: chain(w, x), x)

  def loss(w, x):
    return chain(w, x).sum()

  def remat_loss(w, x):
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
    return lax.scan(layer, x, w)[0].sum()

  assert flops(nested, w, x) == 3 * 7 * one
  assert flops(jax.grad(loss, (0, 1)), w, x) == 3 * 7 * one
  assert flops(jax.grad(remat_loss, (0, 1)), w, x) == 4 * 7 * one


def test_flops_of_attention():
  q, k = zeros(2, 64, 4, 8), zeros(2, 77, 4, 8)
  both = 2 * (2 * 2 * 4 * 64 * 77 * 8)
  assert flops(jax.nn.dot_product_attention, q, k, k) == both

  def loss(q, k, v):
    return jax.nn.dot_product_attention(q, k, v).sum()

  assert flops(jax.grad(loss, (0, 1, 2)), q, k, k) == 3 * both


@pytest.mark.parametrize('stride, padding', [(1, 1), (2, 1), (2, 0), (1, 0)])
@pytest.mark.parametrize('groups', [1, 2])
def test_flops_of_convolutions(stride, padding, groups):
  x, w = zeros(2, 16, 16, 4), zeros(3, 3, 4 // groups, 6)
  conv = functools.partial(
    lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding=[(padding, padding)] * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )
  side = (16 + 2 * padding - 3) // stride + 1
  forward = 2 * (2 * side * side * 6) * (3 * 3 * 4 // groups)
  assert flops(conv, x, w) == forward

  def loss(x, w):
    return conv(x, w).sum()

  assert flops(jax.grad(loss, 1), x, w) == 2 * forward
  # The gradient with respect to x has one value per pixel of x: it costs as
  # much as a convolution with so many outputs, of whose inputs one in stride**2
  # is not zero.
  for_x = 2 * (2 * 16 * 16 * 4) * (3 * 3 * 6 // groups) // stride**2
  assert flops(jax.grad(loss), x, w) == forward + for_x


def test_flops_of_branches_and_loops():
  x = zeros(8, 8)
  one = 2 * 8**3

  def branches(x):
    return lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

  def loop(body, x):
    return lax.while_loop(lambda x: x.sum() < 9, body, x)

  assert flops(branches, x) == 2 * one
  assert flops(functools.partial(loop, lambda x: x + 1), x) == 0
  with pytest.raises(ValueError, match='while of unknown length'):
    flops(functools.partial(loop, lambda x: x @ x), x)


def test_flops_of_all_devices():
  mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ('x', 'y'))
  f = jax.shard_map(
    lambda x: x @ x.T, mesh=mesh, in_specs=P('x'), out_specs=P('x')
  )
  # Each device along y repeats the work of its neighbour.
  assert flops(f, zeros(16, 8)) == 4 * (2 * 8 * 8 * 8)
  jitted = jax.jit(lambda x: x @ x.T, in_shardings=NamedSharding(mesh, P('x')))
  assert flops(jitted, zeros(16, 8)) == 2 * 16 * 16 * 8


def kernel(x, w):
  """Computes x @ w in tiles of 128 rows, by Pallas."""

  def body(x, w, out):
    out[...] = jnp.dot(x[...], w[...], preferred_element_type=jnp.float32)

  rows, n = x.shape
  return pl.pallas_call(
    body,
    grid=(rows // 128,),
    in_specs=[
      pl.BlockSpec((128, n), lambda i: (i, 0)),
      pl.BlockSpec((n, n), lambda i: (0, 0)),
    ],
    out_specs=pl.BlockSpec((128, n), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((rows, n), jnp.float32),
  )(x, w)


def test_flops_of_kernels():
  x, w = zeros(512, 128), zeros(128, 128)

  def f(x, w):
    with jax.named_scope('named'):  # as in JAX's own kernels
      named = kernel(x, w)
    return named + kernel(x, w) + x @ w

  one = 2 * 512 * 128 * 128
  counts = cost.flops_by_kernel(jax.make_jaxpr(f)(x, w))
  assert counts == {'named': one, 'pallas_call': one, None: one}


def test_memory():
  n = 4 * 256 * 256 * 4 // 4  # bytes of w on one of four devices
  rows = 64 * 256 * 4
  m = cost.memory(compile_chain(jax.devices(), layers=4))
  assert m.arguments == n + rows
  assert m.outputs == m.aliased == n
  assert m.peak >= m.arguments
  sizes = dict(argument=5, output=3, alias=2, temp=10)
  without_peak = mock.Mock(spec=jax.stages.Compiled)
  without_peak.memory_analysis.return_value = types.SimpleNamespace(
    **{f'{name}_size_in_bytes': size for name, size in sizes.items()}
  )
  assert cost.memory(without_peak) == cost.Memory(5, 3, 2, 10, 5 + 3 - 2 + 10)


def test_collectives_of_a_sharded_scan():
  layers, n = 7, 256
  text = compile_chain(jax.devices(), layers).as_text()
  received = cost.collectives(text)
  shard = n * n * 4 // 4
  # Each layer is gathered in forward and backward pass; XLA's CPU backend
  # reduces without scattering.
  assert received['all-gather'] == 2 * layers * shard * 3
  assert received['all-reduce'] == layers * n * n * 4 * 2 * 3 / 4
  assert received_between(4, text) == dict.fromkeys(received, 0)
  assert received_between(2, text) == received


def received_between(node_size, text):
  """Returns {kind: bytes received} in groups of more than one node."""
  program = hlo.parse(text)
  totals = dict.fromkeys(hlo_traffic.RECEIVED, 0.0)
  for name, i, runs in hlo_trip_counts.top_level(program):
    for collective in hlo_traffic.collectives_of(program, name, i):
      if len({device // node_size for device in collective.group}) > 1:
        totals[collective.kind] += collective.received * runs
  return totals


def received_by(f):
  """Returns {kind: bytes received} of f, given [16, 16] on each device."""
  mesh = Mesh(np.array(jax.devices()), 'x')
  f = jax.shard_map(f, mesh=mesh, in_specs=P('x'), out_specs=P('x'))
  text = jax.jit(f).lower(zeros(64, 16)).compile().as_text()
  return cost.collectives(text)


def test_each_kind_of_collective():
  local = 16 * 16 * 4  # bytes of x on one of four devices
  gathered = received_by(lambda x: lax.all_gather(x, 'x'))
  assert gathered['all-gather'] == 3 * local
  ring = [(i, (i + 1) % 4) for i in range(4)]
  permuted = received_by(lambda x: lax.ppermute(x, 'x', ring))
  assert permuted['collective-permute'] == local
  exchanged = received_by(lambda x: lax.all_to_all(x, 'x', 1, 0, tiled=True))
  assert exchanged['all-to-all'] == local * 3 / 4
  scattered = received_by(lambda x: lax.psum_scatter(x, 'x', tiled=True))
  assert scattered['reduce-scatter'] == local * 3 / 4

  def body(x, _):
    return x + jnp.sin(lax.psum(x, 'x')), None

  summed = received_by(lambda x: lax.scan(body, x, length=3)[0])
  assert summed['all-reduce'] == 3 * local * 2 * 3 / 4


@pytest.mark.parametrize(
  'notation, ids',
  [
    ('{{0,1},{2,3},{4,5},{6,7}}', [0, 1]),
    ('[4,2]<=[8]', [0, 1]),
    ('[2,4]<=[4,2]T(1,0)', [0, 2, 4, 6]),
    ('{}', [0, 1, 2, 3, 4, 5, 6, 7]),
    ("mesh['a'=4,'b'=2] {'b'}", [0, 1]),
    ("mesh['a'=4,'b'=2] {'a'}", [0, 2, 4, 6]),
    ("mesh['a'=4,'b'=2] {'a':(2)2}", [0, 2]),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", [0, 1, 2, 3]),
  ],
)
def test_replica_groups(notation, ids):
  attributes = f', channel_id=1, replica_groups={notation}, dimensions={{0}}'
  i = hlo.Instruction('all-gather.1', 'f32[8]', 'all-gather', '', attributes)
  assert hlo.group(i, 8) == ids


# In the style of the TPU compiler: no trip counts; constants are copied and
# passed through the outer loop; a gather is hidden behind other work.
TPU_PROGRAM = """HloModule jit_step, num_partitions=4

%start (p: f32[8,4]) -> (f32[8,4], f32[32,4]) {
  %p = f32[8,4]{1,0} parameter(0)
  %ag = f32[32,4]{1,0} all-gather(%p), replica_groups={{0,1,2,3}}, CONFIG
  ROOT %s = (f32[8,4], f32[32,4]) custom-call(%ag), START
}

%beside (p: f32[8,4]) -> f32[32,4] {
  %p.1 = f32[8,4]{1,0} parameter(0)
  ROOT %ag.1 = f32[32,4] all-gather(%p.1), replica_groups={{0,1,2,3}}, CONFIG
}

%scatter (p: f32[32,4]) -> f32[8,4] {
  %p.2 = f32[32,4]{1,0:T(8,128)S(1)} parameter(0)
  %ar = f32[32,4]{1,0} all-reduce(%p.2), replica_groups={{0,1,2,3}}
  ROOT %ds = f32[8,4]{1,0} dynamic-slice(%ar), dynamic_slice_sizes={8,4}
}

%inner_condition (v: (s32[], s32[], s32[])) -> pred[] {
  %v = (s32[]{:T(128)}, s32[], s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%v), index=0
  %limit = s32[] get-tuple-element(%v), index=2
  ROOT %gt = pred[] compare(%limit, %i), direction=GT
}

%inner (v: (s32[], s32[], s32[])) -> (s32[], s32[], s32[]) {
  %v.1 = (s32[], s32[], s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%v.1), index=0
  %two = s32[] get-tuple-element(%v.1), index=1
  %limit.1 = s32[] get-tuple-element(%v.1), index=2
  %work = f32[8] fusion(%i.1), kind=kLoop, calls=%beside, metadata={op_name="a b
c"}, backend_config={"estimated_cycles":"100"}
  %next = s32[] add(%i.1, %two)
  ROOT %t = (s32[], s32[], s32[]) tuple(%next, %two, %limit.1)
}

%outer_condition (v: (s32[], s32[])) -> pred[] {
  %v.2 = (s32[], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%v.2), index=0
  %five = s32[] constant(5)
  ROOT %le = pred[] compare(%j, %five), direction=LE
}

%outer (v: (s32[], s32[])) -> (s32[], s32[]) {
  %v.3 = (s32[], s32[]) parameter(0)
  %j.1 = s32[] get-tuple-element(%v.3), index=0
  %seven = s32[] get-tuple-element(%v.3), index=1
  %one = s32[] constant(1)
  %two.1 = s32[] constant(2)
  %zero = s32[] constant(0)
  %copy = s32[] copy(%zero)
  %t.1 = (s32[], s32[], s32[]) tuple(%copy, %two.1, %seven)
  %while = (s32[], s32[]) while(%t.1), condition=%inner_condition, body=%inner
  %next.1 = s32[] add(%j.1, %one)
  ROOT %t.2 = (s32[], s32[]) tuple(%next.1, %seven)
}

ENTRY %main (x: f32[8,4], y: f32[32,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %y = f32[32,4]{1,0} parameter(1)
  %begin = (f32[8,4], f32[32,4]) fusion(%x), kind=kCustom, calls=%start
  %meanwhile = f32[32,4]{1,0} fusion(%x), kind=kCustom, calls=%beside
  %seven.1 = s32[] constant(7)
  %one.1 = s32[] constant(1)
  %t.3 = (s32[], s32[]) tuple(%one.1, %seven.1)
  %while.1 = (s32[], s32[]) while(%t.3), condition=%outer_condition, body=%outer
  ROOT %rs = f32[8,4]{1,0} fusion(%y), kind=kCustom, calls=%scatter
}
"""
TPU_PROGRAM = TPU_PROGRAM.replace(
  'CONFIG', 'backend_config={"async_collective_fusion_config":{}}'
).replace('START', 'custom_call_target="AsyncCollectiveStart"')


def test_tpu_loops():
  program = hlo.parse(TPU_PROGRAM)
  runs = {scope.name: count for scope, count in hlo_trip_counts.runs(program)}
  # j runs over 1, ..., 5 and i over 0, 2, 4, 6.
  assert runs['outer'] == 5 and runs['outer_condition'] == 6
  assert runs['inner'] == 5 * 4 and runs['main'] == 1
  assert cost.cycles(TPU_PROGRAM) == cost.Cycles(5 * 4 * 100, [])


def test_tpu_collectives():
  received = cost.collectives(TPU_PROGRAM)
  assert received['all-gather'] == 3 * 8 * 4 * 4
  assert received['reduce-scatter'] == 32 * 4 * 4 * 3 / 4
  assert received['all-reduce'] == 0


@pytest.mark.parametrize(
  'old, new',
  [
    ('s32[] add(%j.1, %one)', 's32[] multiply(%j.1, %one)'),
    ('%five = s32[] constant(5)', '%five = s32[] custom-call()'),
    ('pred[] compare(%j, %five), direction=LE', 'pred[] custom-call(%j)'),
    ('tuple(%one.1, %seven.1)', 'tuple(%x, %seven.1)'),
  ],
)
def test_unknown_trip_count(old, new):
  assert old in TPU_PROGRAM
  with pytest.raises(ValueError, match='trip count of loop while.1'):
    cost.cycles(TPU_PROGRAM.replace(old, new))


def test_loop_that_depends_on_data():
  f = jax.jit(lambda x: lax.while_loop(lambda x: x < 9, lambda x: x * x, x))
  text = f.lower(zeros()).compile().as_text()
  with pytest.raises(ValueError, match='trip count of loop'):
    cost.bytes_accessed(text)


def test_not_hlo():
  with pytest.raises(ValueError, match='not an HLO program'):
    cost.cycles('module @jit_step attributes {}')


def test_bytes_accessed():
  x = zeros(256, 512)
  text = jax.jit(lambda x: x @ x.T).lower(x).compile().as_text()
  assert cost.bytes_accessed(text) == 4 * (256 * 512 + 256 * 256)

  def accessed(layers):
    w = zeros(layers, 256, 256)
    text = jax.jit(chain).lower(w, zeros(8, 256)).compile().as_text()
    return cost.bytes_accessed(text)

  # A layer reads its own matrix, not the whole stack: growth is linear.
  layer = (accessed(16) - accessed(8)) / 8
  assert (accessed(64) - accessed(16)) / 48 == pytest.approx(layer)
  assert 256 * 256 * 4 <= layer <= 4 * 256 * 256 * 4


@pytest.mark.parametrize('name', ['v5p:2x2x1', 'v5e:2x4'])
def test_on_tpu(name):
  pytest.importorskip('libtpu')
  devices, chip = topology.make_devices(name)
  n, count = 1024, len(devices)
  costs = {}
  for layers in (3, 9):
    compiled = compile_chain(devices, layers, n, 256, jnp.bfloat16)
    text = compiled.as_text()
    costs[layers] = cost.cycles(text).estimated
    received = cost.collectives(text)
    once = layers * n * n * 2 * (count - 1) / count
    assert received['all-gather'] == pytest.approx(2 * once)
    # The compiler rounds shards up to its tiles and moves the padding too.
    assert received['reduce-scatter'] == pytest.approx(once, rel=0.15)
    assert received['all-reduce'] == 0
  m = cost.memory(compiled)
  assert m.arguments == 9 * n * n * 2 // count + 256 * n * 2
  assert m.aliased == 9 * n * n * 2 // count and m.peak > m.arguments
  # Three matmuls per layer, at no more than the peak of the chip.
  seconds = (costs[9] - costs[3]) / 6 / chip.clock
  assert seconds > 3 * 2 * 256 * n * n / chip.flops


def test_kernels_on_tpu():
  pytest.importorskip('libtpu')
  devices, _ = topology.make_devices('v5p:2x2x1')
  one = jax.sharding.SingleDeviceSharding(devices[0])
  x = jax.ShapeDtypeStruct((512, 128), jnp.float32, sharding=one)
  w = jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=one)

  def f(x, w):
    def body(x, _):
      with jax.named_scope('named'):
        return kernel(jnp.sin(x), w), None

    return lax.scan(body, x, length=5)[0]

  traced = jax.jit(f).trace(x, w)
  text = traced.lower(lowering_platforms=('tpu',)).compile().as_text()
  cycles = cost.cycles(text)
  size = 4 * (2 * 512 * 128 + 128 * 128)
  call = kernels.Call('named', ((512, 128), (128, 128)), ((512, 128),))
  assert cycles.kernels == [kernels.Kernel(call, 5, size)]
  assert cycles.estimated > 0
  one = 2 * 512 * 128 * 128
  assert cost.kernel_flops(traced.jaxpr) == {call: one}
  assert cost.compiled_kernel_flops(text, traced.jaxpr) == 5 * one


def test_kernels_that_remat_repeats_in_the_jaxpr_alone():
  """The compiler removes the second forward run of what a policy keeps."""
  pytest.importorskip('libtpu')
  devices, _ = topology.make_devices('v5p:2x2x1')
  one = jax.sharding.SingleDeviceSharding(devices[0])
  x = jax.ShapeDtypeStruct((1, 1024, 128), jnp.bfloat16, sharding=one)
  w = jax.ShapeDtypeStruct((3, 128, 128), jnp.bfloat16, sharding=one)
  policies = jax.checkpoint_policies
  keep = policies.save_from_both_policies(
    policies.dots_with_no_batch_dims_saveable,
    policies.save_only_these_names(attention.SAVED),
  )

  def block(x, w):
    h = x @ w
    return x + attention.attention(h, h, h, 2, 'splash'), None

  def loss(w, x):
    layer = jax.checkpoint(block, policy=keep, prevent_cse=False)
    return lax.scan(layer, x, w)[0].astype(jnp.float32).sum()

  # As in runs; the tests' own precision is one that bfloat16 lacks.
  with jax.default_matmul_precision('default'):
    traced = jax.jit(jax.grad(loss)).trace(w, x)
    text = traced.lower(lowering_platforms=('tpu',)).compile().as_text()
  product = 2 * 2 * 1024 * 1024 * 64  # of two heads
  in_jaxpr = cost.flops_by_kernel(traced.jaxpr)
  in_jaxpr.pop(None)
  assert sum(in_jaxpr.values()) == 3 * (2 * 2 + 5) * product
  assert cost.compiled_kernel_flops(text, traced.jaxpr) == 3 * 7 * product
  assert [kernel.runs for kernel in cost.cycles(text).kernels] == [3, 3]


def test_on_gpu():
  pytest.importorskip('jax_plugins.xla_cuda13')
  devices, _ = topology.make_devices('h100x8')
  layers, n = 6, 512
  compiled = compile_chain(devices, layers, n, 16, jnp.bfloat16)
  received = cost.collectives(compiled.as_text())
  once = layers * n * n * 2 * 7 / 8
  assert received['all-gather'] == 2 * once
  assert received['reduce-scatter'] + received['all-reduce'] / 2 == once
  assert cost.memory(compiled).peak > layers * n * n * 2 // 8
  assert cost.cycles(compiled.as_text()) == cost.Cycles(0, [])


def test_between_nodes_of_gpus():
  pytest.importorskip('jax_plugins.xla_cuda13')
  devices, _ = topology.make_devices('h100x8x2')
  mesh = Mesh(np.array(devices).reshape(2, 8), ('data', 'fsdp'))
  split = NamedSharding(mesh, P('fsdp'))
  rows = NamedSharding(mesh, P(('data', 'fsdp')))
  n = 512
  w = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=split)
  x = jax.ShapeDtypeStruct((256, n), jnp.float32, sharding=rows)

  def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)

  step = jax.jit(jax.grad(loss), out_shardings=split)
  text = step.lower(w, x).compile().as_text()
  between = received_between(8, text)
  # Gradients are summed inside each node, then one shard between the nodes.
  assert between['all-reduce'] == n * n * 4 / 8 * 2 / 2
  assert between['all-gather'] == 0
  assert cost.collectives(text)['all-gather'] == n * n * 4 * 7 / 8
