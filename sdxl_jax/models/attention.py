"""Multi-head attention by name of the implementation.

  xla     what the compiler makes of the formula; everywhere
  cudnn   cuDNN's fused kernel, on NVIDIA GPUs; float32, which it lacks, by xla
  splash  JAX's fused Pallas kernel, on TPUs, for self-attention over many
          pixels; all else by xla

The fused ones never write the n x m weights of pixels to memory, which for
XLA's is most of what a block at 1024 px moves. For larger pictures XLA's takes
the queries in chunks, and on a CPU in chunks that its cache holds.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jax.sharding import PartitionSpec

IMPLEMENTATIONS = ('xla', 'cudnn', 'splash')
# The name of what fused kernels give, for rematerialisation policies.
SAVED = 'attention'
# Weights of one head beyond which XLA's takes chunks, and those of a chunk. At
# 2048 px the autoencoder has 2^32, which are 16 GiB.
LIMITS = (2**28, 2**26)
# On a CPU a chunk is 2 MiB for each row of the batch, and that is 2 to 4 times
# as fast as all weights at once from 1024 pixels on.
CPU_LIMITS = (2**15, 2**19)
# Below this the weights are so few that a kernel of its own costs more.
SPLASH_PIXELS = 512
# Pixels that one step of the kernel takes as queries, as keys. The buckets have
# at most 4096 and 1024 at their two levels with attention, and not much fewer.
BLOCK_Q, BLOCK_KV = 512, 1024
# How q, k, v lie in memory. Heads of 64 last would fill half of each register
# of 128, and splitting them off would copy everything.
PIXELS_LAST = splash_kernel.QKVLayout.SEQ_MINOR


def attention(q, k, v, num_heads, implementation='xla', causal=False):
  """softmax(q k^T / sqrt(d)) v over heads; q [b, n, c], k and v [b, m, c]."""
  split = lambda x: x.reshape(*x.shape[:2], num_heads, -1)
  out = attend(split(q), split(k), split(v), implementation, causal)
  return out.reshape(q.shape)


def attend(q, k, v, implementation, causal):
  if implementation == 'splash':
    n, m = q.shape[1], k.shape[1]
    if n == m >= SPLASH_PIXELS and not causal:
      return splash(q, k, v)
    implementation = 'xla'
  if implementation == 'cudnn' and q.dtype == jnp.float32:
    implementation = 'xla'
  if implementation == 'xla' and not causal:
    return by_xla(q, k, v)
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation=implementation
  )


@jax.custom_jvp
def by_xla(q, k, v):
  """The formula, in chunks as the platform likes them."""
  if k.shape[1] * q.shape[1] <= CPU_LIMITS[0]:
    return formula(q, k, v, LIMITS)
  on = lambda limits: functools.partial(formula, limits=limits)
  return jax.lax.platform_dependent(
    q, k, v, cpu=on(CPU_LIMITS), default=on(LIMITS)
  )


@by_xla.defjvp
def by_xla_jvp(primals, tangents):
  # What is kept for a gradient would be kept for every platform's way.
  return jax.jvp(functools.partial(formula, limits=LIMITS), primals, tangents)


def formula(q, k, v, limits):
  most, chunk = limits
  n, m = q.shape[1], k.shape[1]
  if n * m > most:
    return in_chunks(q, k, v, min(n, max(1, chunk // m)))
  return jax.nn.dot_product_attention(q, k, v, implementation='xla')


def in_chunks(q, k, v, rows):
  """The formula, one head at a time and `rows` of its queries at a time."""
  b, n, _, d = q.shape
  count = -(-n // rows)

  def one_head(head):
    q, k, v = head
    q = jnp.pad(q, ((0, 0), (0, count * rows - n), (0, 0)))
    q = q.reshape(b, count, rows, d).swapaxes(0, 1)
    out = jax.lax.map(lambda q: one_chunk(q, k, v), q)
    return out.swapaxes(0, 1).reshape(b, count * rows, d)[:, :n]

  heads_first = [jnp.moveaxis(x, 2, 0) for x in (q, k, v)]
  return jnp.moveaxis(jax.lax.map(one_head, heads_first), 0, 2)


def one_chunk(q, k, v):
  """Attention of q [b, rows, d] to k and v [b, m, d]; its sums are float32."""
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = product('bnd,bmd->bnm', q, k) * q.shape[-1] ** -0.5
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  out = product('bnm,bmd->bnd', weights.astype(v.dtype), v)
  return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def splash(q, k, v):
  """Self-attention [b, n, heads, d] by the Pallas kernel.

  A kernel cannot be partitioned by the compiler. Under a mesh (jax.set_mesh)
  each device runs it on its own rows of the batch and, if the mesh has an axis
  `tensor`, on its own heads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return splash_on_one_device(q, k, v)
  rows = tuple(axis for axis in mesh.axis_names if axis != 'tensor')
  heads = 'tensor' if 'tensor' in mesh.axis_names else None
  spec = PartitionSpec(rows, None, heads)
  return jax.shard_map(
    splash_on_one_device,
    in_specs=(spec,) * 3,
    out_specs=spec,
    check_vma=False,
  )(q, k, v)


def splash_on_one_device(q, k, v):
  n, num_heads, d = q.shape[1:]
  padded = -(-n // BLOCK_KV) * BLOCK_KV
  pad = ((0, 0), (0, 0), (0, padded - n), (0, 0))
  heads_first = lambda x: jnp.pad(x.swapaxes(1, 2), pad)
  kernel = splash_kernel.make_splash_mha_single_device(
    splash_mask.MultiHeadMask(
      [splash_mask.FullMask((padded,) * 2)] * num_heads
    ),
    block_sizes=splash_kernel.BlockSizes(
      block_q=BLOCK_Q,
      block_kv=BLOCK_KV,
      block_q_dkv=BLOCK_Q,
      block_kv_dkv=BLOCK_KV,
      use_fused_bwd_kernel=True,
      q_layout=PIXELS_LAST,
      k_layout=PIXELS_LAST,
      v_layout=PIXELS_LAST,
    ),
    residual_checkpoint_name=SAVED,
  )
  # Pixels see those of their own segment: what pads is another.
  segments = None
  if padded > n:
    ids = (jnp.arange(padded) >= n).astype(jnp.int32)
    segments = splash_kernel.SegmentIds(ids, ids)
  one_row = lambda q, k, v: kernel(q, k, v, segments)
  q = q * d**-0.5
  out = jax.vmap(one_row)(heads_first(q), heads_first(k), heads_first(v))
  return out[:, :, :n].swapaxes(1, 2)
