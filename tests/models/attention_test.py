"""Fused attention against the formula."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import attention


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """Runs the TPU's kernel step by step on the CPU."""
  kernel = attention.splash_kernel
  make = functools.partial(kernel.make_splash_mha_single_device, interpret=True)
  monkeypatch.setattr(kernel, 'make_splash_mha_single_device', make)


@pytest.mark.parametrize('causal', [False, True])
def test_attention(causal):
  generator = np.random.default_rng(0)
  q, k, v = generator.normal(size=(3, 2, 5, 8)).astype(np.float32)

  def heads(x):
    return x.reshape(2, 5, 4, 2).transpose(0, 2, 1, 3)

  logits = heads(q) @ heads(k).swapaxes(-1, -2) / np.sqrt(2)
  if causal:
    logits[..., np.triu(np.ones((5, 5), bool), 1)] = -np.inf
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = (weights @ heads(v)).transpose(0, 2, 1, 3).reshape(2, 5, 8)
  out = attention.attention(q, k, v, 4, causal=causal)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('causal', [False, True])
def test_float16(causal, close):
  """Forwards and backwards; of logits beyond its range too."""
  args = inputs(2, 5, 8)
  halves = [x.astype(jnp.float16) for x in args]

  def loss(*args):
    out = attention.attention(*args, 2, causal=causal)
    return jnp.square(out.astype(jnp.float32)).sum(), out

  both = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  expected = both(*(x.astype(jnp.float32) for x in halves))
  for a, b in zip(*map(jax.tree.leaves, (both(*halves), expected))):
    close(np.float32(a), b, 3e-3)
  assert both(*halves)[0][1].dtype == jnp.float16
  q, k, v = (300 * x for x in halves)
  out = attention.attention(q, k, v, 2, causal=causal)
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  close(np.float32(out), attention.attention(q, k, v, 2, causal=causal), 2e-3)


def test_attention_over_a_context_of_another_length():
  q, k, v = jnp.zeros((1, 3, 4)), jnp.zeros((1, 7, 4)), jnp.ones((1, 7, 4))
  np.testing.assert_allclose(
    attention.attention(q, k, v, 2), jnp.ones((1, 3, 4))
  )


def inputs(b, n, c):
  rng = np.random.default_rng(0)
  return [jnp.float32(rng.normal(size=(b, n, c))) for _ in range(3)]


@pytest.mark.parametrize('rows', [1, 4, 5, 13, 20])
def test_chunks_of_queries(rows, monkeypatch):
  args = inputs(2, 13, 8)
  expected = attention.attention(*args, 2)
  limits = attention.ChunkLimits(13 * 13 - 1, rows * 13)
  monkeypatch.setattr(attention, 'LIMITS', limits)
  traced = str(jax.make_jaxpr(lambda *x: attention.attention(*x, 2))(*args))
  assert 'scan' in traced
  out = attention.attention(*args, 2)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rows', [1, 5, 13])
def test_rows_one_after_another(rows):
  """The same numbers, in matrix products in place of batches of them."""
  q, k, v = (x.reshape(2, 13, 2, 4) for x in inputs(2, 13, 8))
  together = attention.chunked_attention(q, k[:, :7], v[:, :7], rows)
  apart = attention.chunked_attention(q, k[:, :7], v[:, :7], rows, apart=True)
  np.testing.assert_allclose(apart, together, rtol=1e-6)
  expected = attention.limited_attention(
    q, k[:, :7], v[:, :7], attention.LIMITS
  )
  np.testing.assert_allclose(apart, expected, rtol=1e-5, atol=1e-6)


def test_rows_are_apart_on_a_single_device(monkeypatch):
  apart, together = attention.CPU_LIMITS, attention.GPU_LIMITS
  assert not attention.are_apart(apart)  # four devices would share them
  held = ('xla', 'cpu')
  assert attention.weights_held(3, 4096, 5, 'float32', *held) == 3 * 2**19
  monkeypatch.setattr(attention.jax, 'device_count', lambda: 1)
  assert attention.are_apart(apart) and not attention.are_apart(together)
  assert attention.weights_held(3, 4096, 5, 'float32', *held) == 2**19


def test_chunks_are_small_on_a_cpu_only():
  """And a gradient is of all weights at once, as elsewhere."""
  x = jax.ShapeDtypeStruct((1, 256, 8), jnp.float32)

  def attend(*x):
    return attention.attention(*x, 2)

  slope = jax.grad(lambda *x: attend(*x).sum())

  def loops(function, platform):
    traced = jax.jit(function).trace(x, x, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return text.count('stablehlo.while')

  assert loops(attend, 'cpu')
  for platform in ('tpu', 'cuda'):
    assert not loops(attend, platform)
  assert not loops(slope, 'cpu')
  args = inputs(2, 300, 8)
  np.testing.assert_allclose(
    jax.jit(attend)(*args),
    attention.limited_attention(
      *(y.reshape(2, 300, 2, 4) for y in args), attention.ChunkLimits(2**20, 0)
    ).reshape(2, 300, 8),
    rtol=1e-5,
    atol=1e-6,
  )


def test_a_gpu_takes_one_head_after_another(close):
  """From 2^22 weights on, in its own program alone and not in gradients."""
  x = jax.ShapeDtypeStruct((1, 2112, 8), jnp.float16)

  def attend(*x):
    return attention.attention(*x, 2)

  slope = jax.grad(lambda *x: attend(*x).sum())

  def loops(function, platform):
    traced = jax.jit(function).trace(x, x, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    return text.count('stablehlo.while')

  assert loops(attend, 'cuda') and loops(attend, 'rocm')
  assert not loops(attend, 'tpu') and not loops(slope, 'cuda')
  # In float16 both are as close to float32 as its digits allow.
  halves = [
    x.astype(jnp.float16).reshape(2, 64, 2, 8) for x in inputs(2, 64, 16)
  ]
  whole, by_head = (
    attention.limited_attention(*halves, attention.ChunkLimits(most, 2**12))
    for most in (2**12, 2**11)
  )
  args = [x.astype(jnp.float32) for x in halves]
  exact = attention.limited_attention(*args, attention.ChunkLimits(2**12, 0))
  assert whole.dtype == by_head.dtype == jnp.float16
  close(np.float32(by_head), exact, 1e-3)
  close(np.float32(by_head), np.float32(whole), 1e-3)


@pytest.mark.parametrize(
  'implementation, platform, dtype, n, count',
  [
    ('xla', 'gpu', 'float16', 1024, 2 * 10 * 2**20),
    ('xla', 'gpu', 'float16', 4096, 2 * 2**24),  # of one head
    ('xla', 'gpu', 'float32', 16384, 2 * 2**26),  # of a chunk of its queries
    ('xla', 'tpu', 'float32', 16384, 2 * 10 * 2**28),
    ('xla', 'tpu', 'float32', 32768, 2 * 2**26),
    ('xla', 'cpu', 'float32', 4096, 2 * 2**19),
    ('cudnn', 'gpu', 'bfloat16', 4096, 0),
    ('cudnn', 'gpu', 'float32', 4096, 2 * 2**24),
    ('splash', 'tpu', 'bfloat16', 4096, 0),
    ('splash', 'tpu', 'bfloat16', 256, 2 * 10 * 2**16),
  ],
)
def test_weights_held(implementation, platform, dtype, n, count):
  found = attention.weights_held(2, n, 10, dtype, implementation, platform)
  assert found == count


def test_chunks_leave_rows_on_their_devices(close):
  rows = sharding.batch_sharding(
    device_mesh.make_mesh(devices=jax.devices()[:4])
  )
  args = inputs(4, 300, 8)
  attend = jax.jit(lambda *x: attention.attention(*x, 2))
  spread = [jax.device_put(x, rows) for x in args]
  text = attend.lower(*spread).compile().as_text()
  for word in ('all-gather', 'all-reduce', 'all-to-all', 'permute('):
    assert word not in text, word
  assert ' conditional(' not in text  # the platform was chosen before
  close(attend(*spread), attend(*args), 1e-6)


def with_gradients(implementation, *args):
  def loss(q, k, v):
    out = attention.attention(q, k, v, 2, implementation)
    return jnp.square(out).sum(), out

  return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)


@pytest.mark.parametrize(
  'n', [1024, 924]
)  # 22 x 42: a bucket that needs padding
def test_splash(n, close):
  args = inputs(1, n, 128)
  expected = with_gradients('xla', *args)
  for a, b in zip(
    jax.tree.leaves(with_gradients('splash', *args)), jax.tree.leaves(expected)
  ):
    close(a, b, 1e-5)


def test_splash_on_a_mesh(close):
  """Rows over data and fsdp, heads over tensor."""
  four = device_mesh.make_mesh(1, 2, 2, devices=jax.devices()[:4])
  args = inputs(2, 512, 128)
  expected = attention.attention(*args, 2)
  with jax.set_mesh(four):
    actual = jax.jit(attention.attention, static_argnums=(3, 4))(
      *args, 2, 'splash'
    )
  close(actual, expected, 1e-5)


def test_what_splash_leaves_to_xla(monkeypatch, close):
  """Few pixels, words, causal attention, and float16."""
  monkeypatch.setattr(attention, 'splash_attention', None)
  q, k, v = inputs(2, 600, 32)

  def short(x):
    return x[:, :77]

  for args, causal in (
    ((q, short(k), short(v)), False),
    ((short(q), short(k), short(v)), False),
    ((q, k, v), True),
    ([x.astype(jnp.float16) for x in (q, k, v)], False),
  ):
    actual, expected = (
      attention.attention(*args, 2, name, causal) for name in ('splash', 'xla')
    )
    close(actual, expected, 0)


def test_what_cudnn_leaves_to_xla(close):
  """cuDNN has no kernel for float32."""
  args = inputs(1, 16, 16)
  close(*(attention.attention(*args, 2, name) for name in ('cudnn', 'xla')), 0)
