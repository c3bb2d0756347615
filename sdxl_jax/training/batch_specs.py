"""Shapes and dtypes of the batches that data/pipeline.py makes."""

import jax
import jax.numpy as jnp

from sdxl_jax.models import sdxl
from sdxl_jax.text import chunking

Spec = dict[str, jax.ShapeDtypeStruct]


def divide_batch(global_batch_size: int, micro_batches: int) -> int:
  """Returns the examples in each micro-batch of an optimizer step.

  Raises:
    ValueError: if the batch cannot be divided.
  """
  if global_batch_size % micro_batches:
    raise ValueError(
      f'global_batch_size {global_batch_size} is not a multiple of '
      f'{micro_batches} = accumulation_steps x buckets_per_step; change one of '
      'them'
    )
  return global_batch_size // micro_batches


def image_batch_spec(
  bucket: tuple[int, int], batch_size: int, refiner: bool, text_chunks: int = 1
) -> Spec:
  """A batch of images with tokens and micro-conditioning.

  Args:
    bucket: (height, width) in px.
    batch_size: examples of all hosts.
    refiner: whether there are aesthetic scores.
    text_chunks: chunks of each caption.
  """

  def spec(shape, dtype):
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

  batch = {
    'image': spec((*bucket, 3), jnp.float32),
    # Of both text encoders.
    'tokens': spec(chunking.shape(text_chunks), jnp.int32),
    # Micro-conditioning in px, (height, width) or (top, left).
    'original_size': spec((2,), jnp.int32),
    'crop_top_left': spec((2,), jnp.int32),
    'target_size': spec((2,), jnp.int32),
  }
  if refiner:
    batch['aesthetic_score'] = spec((), jnp.float32)
  return batch


def mask_spec(bucket: tuple[int, int], batch_size: int, downscale: int) -> Spec:
  """What a batch has besides if the loss is masked.

  Args:
    bucket: (height, width) in px.
    batch_size: examples of all hosts.
    downscale: px per latent.
  """
  h, w = (side // downscale for side in bucket)
  return {'mask': jax.ShapeDtypeStruct((batch_size, h, w), jnp.float32)}


def precomputed_batch_spec(
  bucket: tuple[int, int],
  batch_size: int,
  model: sdxl.SDXL,
  dtype: str,
  text_chunks: int = 1,
) -> Spec:
  """A batch with precomputed moments and text in place of images and tokens.

  Args:
    bucket: (height, width) in px.
    batch_size: examples of all hosts.
    model: the model that moments and text are for.
    dtype: of moments and text, as the cache stores them.
    text_chunks: chunks of each caption.
  """

  def spec(*shape):
    return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

  # The frozen nets' inputs are replaced by their outputs.
  batch = image_batch_spec(bucket, batch_size, model.refiner)
  del batch['image'], batch['tokens']
  h, w = (side // model.vae.downscale for side in bucket)
  encoder = model.text.text_encoder_2
  length = text_chunks * encoder.max_position_embeddings
  return batch | {
    'moments': spec(h, w, 2 * model.unet.in_channels),  # mean, log-variance
    'context': spec(length, model.unet.context_dim),
    'pooled': spec(encoder.projection_dim),
  }
