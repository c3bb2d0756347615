"""Multi-head attention by name of the implementation.

  xla     the formula, compiled by XLA; everywhere
  cudnn   cuDNN's fused kernel, on NVIDIA GPUs; float32, which cuDNN lacks, by
          xla
  splash  JAX's fused Pallas kernel, on TPUs, for self-attention over many
          pixels; all else, and float16, by xla

The fused kernels never write the n x m weights of pixels to memory, which for
xla is most of the traffic of a block at 1024 px. For larger images xla takes
the queries in chunks; on a GPU from 512 px on, since one that has to use xla is
old and small, and on a CPU in chunks that fit its cache.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Array, ArrayLike, Float

Queries = Float[ArrayLike, 'b n heads d']
Keys = Float[ArrayLike, 'b m heads d']
Output = Float[Array, 'b n heads d']


class ChunkLimits(NamedTuple):
  """Numbers of attention weights of one head."""

  most: int  # beyond which the queries are taken in chunks
  chunk: int  # of one chunk
  apart: bool = False  # rows of the batch one after another, see are_apart


# The name of the fused kernels' output, for rematerialisation policies.
SAVED = 'attention'
# At 2048 px the autoencoder has 2^32 weights, which are 16 GiB.
LIMITS = ChunkLimits(most=2**28, chunk=2**26)
# At 1024 px a level of the base has 10 heads with 2^24 weights each, which as a
# whole are 2 GiB of a T4's 15; one head after another, 0.3 GiB.
GPU_LIMITS = ChunkLimits(most=2**22, chunk=2**26)
# On a CPU a chunk is 2 MiB of one row and head. That is 2 to 4 times as fast as
# all weights at once from 1024 pixels on, and 1.2 to 1.5 times as fast as rows
# together, whose products are batches of matrices.
CPU_LIMITS = ChunkLimits(most=2**15, chunk=2**19, apart=True)
# Below this the weights are so few that a kernel of its own costs more.
SPLASH_PIXELS = 512
# Pixels that one step of the kernel takes as queries, as keys. The buckets have
# at most 4096 and 1024 at their two levels with attention, and not much fewer.
BLOCK_Q, BLOCK_KV = 512, 1024
# How q, k, v lie in memory. Heads of 64 last would fill half of each register
# of 128, and splitting them off would copy everything.
PIXELS_LAST = splash_kernel.QKVLayout.SEQ_MINOR


def attention(
  q: Float[ArrayLike, 'b n c'],
  k: Float[ArrayLike, 'b m c'],
  v: Float[ArrayLike, 'b m c'],
  num_heads: int,
  implementation: str = 'xla',
  causal: bool = False,
) -> Float[Array, 'b n c']:
  """Returns softmax(q k^T / sqrt(d)) v over heads."""
  q_heads, k_heads, v_heads = (
    x.reshape(*x.shape[:2], num_heads, -1) for x in (q, k, v)
  )
  out = head_attention(q_heads, k_heads, v_heads, implementation, causal)
  return out.reshape(q.shape)


def head_attention(
  q: Queries, k: Keys, v: Keys, implementation: str, causal: bool
) -> Output:
  """Chooses the implementation for these shapes and this type."""
  # Each fused kernel covers some shapes and types only.
  if implementation == 'splash':
    n, m = q.shape[1], k.shape[1]
    is_float16 = q.dtype == jnp.float16  # of which TPUs have no vectors
    if n == m >= SPLASH_PIXELS and not causal and not is_float16:
      return splash_attention(q, k, v)
    implementation = 'xla'
  if implementation == 'cudnn' and q.dtype == jnp.float32:
    implementation = 'xla'
  if implementation == 'xla' and not causal:
    return xla_attention(q, k, v)
  if implementation == 'xla' and q.dtype == jnp.float16:
    return float16_attention(q, k, v, causal)
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation=implementation
  )


@jax.custom_jvp
def xla_attention(q: Queries, k: Keys, v: Keys) -> Output:
  """Computes the formula, in chunks as large as suits the platform."""
  # Below the CPU's limit, the least, all platforms have the same program.
  if k.shape[1] * q.shape[1] <= CPU_LIMITS.most:
    return limited_attention(q, k, v, LIMITS)
  return jax.lax.platform_dependent(
    q,
    k,
    v,
    cpu=functools.partial(limited_attention, limits=CPU_LIMITS),
    cuda=functools.partial(limited_attention, limits=GPU_LIMITS),
    rocm=functools.partial(limited_attention, limits=GPU_LIMITS),
    default=functools.partial(limited_attention, limits=LIMITS),
  )


@xla_attention.defjvp
def xla_attention_jvp(
  primals: tuple[Queries, Keys, Keys], tangents: tuple
) -> tuple[Output, Output]:
  """Differentiates with the limits of accelerators.

  Residuals of `platform_dependent` would be kept for every platform's branch.
  """
  function = functools.partial(limited_attention, limits=LIMITS)
  return jax.jvp(function, primals, tangents)


def limited_attention(
  q: Queries, k: Keys, v: Keys, limits: ChunkLimits
) -> Output:
  """Computes the formula, in chunks if there are more weights than allowed."""
  n, m = q.shape[1], k.shape[1]
  if n * m > limits.most:
    rows = min(n, max(1, limits.chunk // m))
    return chunked_attention(q, k, v, rows, are_apart(limits))
  if q.dtype == jnp.float16:
    return float16_attention(q, k, v)
  return jax.nn.dot_product_attention(q, k, v, implementation='xla')


def are_apart(limits: ChunkLimits) -> bool:
  """Whether rows of the batch are taken one after another, as heads are.

  Several devices share the rows, and each would need all of those of others.
  """
  return limits.apart and jax.device_count() == 1


def weights_held(
  b: int, n: int, heads: int, dtype: Any, implementation: str, platform: str
) -> int:
  """Returns how many weights of self-attention are in memory at once.

  Args:
    b: rows of the batch.
    n: pixels.
    heads: of each row.
    dtype: of queries, keys and values.
    implementation: see `attention`.
    platform: 'gpu', 'tpu' or 'cpu'.
  """
  is_cudnn = implementation == 'cudnn' and dtype != 'float32'
  if is_cudnn or (implementation == 'splash' and n >= SPLASH_PIXELS):
    return 0
  limits = {'gpu': GPU_LIMITS, 'cpu': CPU_LIMITS}.get(platform, LIMITS)
  if n * n <= limits.most:
    return b * heads * n * n
  b = 1 if are_apart(limits) else b
  return b * n * min(n, max(1, limits.chunk // n))


def float16_attention(
  q: Queries, k: Keys, v: Keys, causal: bool = False
) -> Output:
  """Computes the formula in float16, its logits and softmax in float32.

  Of float16, jax.nn.dot_product_attention asks for an algorithm of products
  that CPUs and TPUs lack.
  """
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = product('bnhd,bmhd->bhnm', q, k) * q.shape[-1] ** -0.5
  if causal:
    seen = jnp.tri(q.shape[1], k.shape[1], dtype=bool)
    logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return jnp.einsum('bhnm,bmhd->bnhd', weights, v)


def chunked_attention(
  q: Queries, k: Keys, v: Keys, rows: int, apart: bool = False
) -> Output:
  """Computes one head at a time and `rows` of its queries at a time.

  Args:
    q, k, v: see above.
    rows: queries of a chunk.
    apart: see are_apart.
  """
  # `map` runs over the first axis: one head after another.
  heads_first = [jnp.moveaxis(x, 2, 0) for x in (q, k, v)]
  shape = heads_first[0].shape
  if apart:
    heads_first = [x.reshape(-1, *x.shape[2:]) for x in heads_first]
  n, d = shape[2:]
  count = -(-n // rows)

  def one_head(head):
    q, k, v = head
    if count == 1:
      return chunk_attention(q, k, v)
    # Whole chunks of queries, [count, *b, rows, d].
    rest = [(0, 0)] * (q.ndim - 2)
    q = jnp.pad(q, [*rest, (0, count * rows - n), (0, 0)])
    q = jnp.moveaxis(q.reshape(*q.shape[:-2], count, rows, d), -3, 0)
    out = jax.lax.map(lambda q: chunk_attention(q, k, v), q)
    out = jnp.moveaxis(out, 0, -3)
    return out.reshape(*out.shape[:-3], count * rows, d)[..., :n, :]

  out = jax.lax.map(one_head, heads_first).reshape(shape)
  return jnp.moveaxis(out, 0, 2)


def chunk_attention(
  q: Float[Array, '*b rows d'],
  k: Float[Array, '*b m d'],
  v: Float[Array, '*b m d'],
) -> Float[Array, '*b rows d']:
  """Attention of one head and one chunk of queries; sums are float32."""
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = product('...nd,...md->...nm', q, k) * q.shape[-1] ** -0.5
  weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
  out = product('...nm,...md->...nd', weights.astype(v.dtype), v)
  return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def splash_attention(q: Queries, k: Queries, v: Queries) -> Output:
  """Self-attention by the Pallas kernel.

  A kernel cannot be partitioned by the compiler. Under a mesh (jax.set_mesh)
  each device runs the kernel on its own rows of the batch and, if the mesh has
  an axis `tensor`, on its own heads.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return splash_on_one_device(q, k, v)
  # [b, n, heads, d]: the batch over all other axes.
  rows = tuple(axis for axis in mesh.axis_names if axis != 'tensor')
  heads = 'tensor' if 'tensor' in mesh.axis_names else None
  spec = PartitionSpec(rows, None, heads)
  return jax.shard_map(
    splash_on_one_device,
    in_specs=(spec,) * 3,
    out_specs=spec,
    check_vma=False,
  )(q, k, v)


def splash_on_one_device(q: Queries, k: Queries, v: Queries) -> Output:
  """Pads the pixels to whole blocks and calls the kernel for each row."""
  n, num_heads, d = q.shape[1:]
  padded = -(-n // BLOCK_KV) * BLOCK_KV
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
  # Pixels attend to their own segment only, and padding is another.
  segments = None
  if padded > n:
    ids = (jnp.arange(padded) >= n).astype(jnp.int32)
    segments = splash_kernel.SegmentIds(ids, ids)
  # The kernel takes [heads, n, d], scaled queries and no batch.
  pad = ((0, 0), (0, 0), (0, padded - n), (0, 0))
  heads_first = [jnp.pad(x.swapaxes(1, 2), pad) for x in (q * d**-0.5, k, v)]
  out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(*heads_first)
  return out[:, :, :n].swapaxes(1, 2)
