"""Multi-head attention by name of the implementation.

  xla     what the compiler makes of the formula; everywhere
  cudnn   cuDNN's fused kernel, on NVIDIA GPUs; float32, which it lacks, by xla
  splash  JAX's fused Pallas kernel, on TPUs, for self-attention over many
          pixels; all else by xla

The fused ones never write the n x m weights of pixels to memory, which for
XLA's is most of what a block at 1024 px moves. For larger pictures XLA's takes
the queries in chunks.
"""

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
MOST_WEIGHTS, CHUNK_WEIGHTS = 2**28, 2**26
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
  n, m = q.shape[1], k.shape[1]
  if implementation == 'xla' and n * m > MOST_WEIGHTS and not causal:
    return in_chunks(q, k, v, max(1, CHUNK_WEIGHTS // m))
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation=implementation
  )


def in_chunks(q, k, v, rows):
  """The formula for `rows` queries at a time; each has a softmax of its own."""
  b, n, heads, d = q.shape
  count = -(-n // rows)
  q = jnp.pad(q, ((0, 0), (0, count * rows - n), (0, 0), (0, 0)))
  q = q.reshape(b, count, rows, heads, d).swapaxes(0, 1)
  one = lambda q: jax.nn.dot_product_attention(q, k, v, implementation='xla')
  out = jax.lax.map(one, q).swapaxes(0, 1)
  return out.reshape(b, count * rows, heads, d)[:, :n]


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
