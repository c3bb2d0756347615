"""Encodes prompts into the conditioning of the denoising loop."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from sdxl_jax.diffusion import guidance
from sdxl_jax.distributed import batch_padding
from sdxl_jax.models import sdxl, text_encoder
from sdxl_jax.sampling import pipelines, validation
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.text import chunking, tokenizer

Tokens = Int32[np.ndarray, 'b k 2 77']
Weights = Float32[np.ndarray, 'b k 2 77']
Chunks = tuple[Tokens, Weights]
# context [b, 77 k, 2048] and pooled [b, 1280].
Encoded = tuple[Float[Array, 'b n d'], Float[Array, 'b p']]


class Prompts(NamedTuple):
  """The texts of a batch: lists of strings, one per image, or None."""

  prompts: list[str]
  negative_prompts: list[str] | None = None  # None: no text at all
  prompts_2: list[str] | None = None  # for OpenCLIP ViT-bigG, where they differ
  negative_prompts_2: list[str] | None = None


class Conditioning(NamedTuple):
  """The inputs of the UNet that stay the same at every step.

  With guidance there are two rows per image, see guidance.interleave_pairs.
  """

  # [b, 77 k, 2048], or the keys and values that cross-attention makes of it.
  context: Any
  vector: Float[Array, 'b v']


def make_conditioning(
  pipeline: pipelines.Pipeline,
  rows: batch_padding.Rows,
  prompts: Prompts,
  conditions: tuple[dict[str, Any], dict[str, Any]],
  settings: SampleSettings,
) -> Conditioning:
  """Encodes prompts and micro-conditioning of a batch.

  Args:
    pipeline: base or refiner.
    rows: the batch on its devices.
    prompts: of all rows.
    conditions: micro-conditioning of both branches, see
      settings.micro_conditions.
    settings: of the batch.

  Raises:
    ValueError: for lists of different lengths, images whose prompts take
      different numbers of chunks, or a clip_skip without such a block.
  """
  model = pipeline.model
  guided = validation.uses_cfg(model, settings.guidance_scale)
  encoded = encode_branches(
    model.text,
    pipeline.on_device('text_encoder', 'text_encoder_2'),
    pipeline.tokenize,
    prompts,
    settings,
    force_zeros=pipeline.force_zeros,
    guided=guided,
    least=pipeline.text_chunks,
    place=rows.place,
  )
  branches = [
    Conditioning(
      context, vector(model, pooled, repeat_rows(sizes, len(pooled)))
    )
    for (context, pooled), sizes in zip(encoded, conditions)
  ]
  conditioning = branches[0]
  if guided:
    cond, uncond = branches
    conditioning = jax.tree.map(guidance.interleave_pairs, uncond, cond)
  # Parameters of an offloaded text encoder leave the device after this.
  return jax.block_until_ready(conditioning)


def encode_branches(
  encoder: text_encoder.TextEncoder,
  params: dict[str, Any],
  tokenize: tokenizer.Tokenizer,
  prompts: Prompts,
  settings: SampleSettings,
  *,
  force_zeros: bool,
  guided: bool,
  least: int = 1,
  place: Callable[..., Array] = jnp.asarray,
) -> list[Encoded]:
  """Encodes prompts and, where guidance needs it, the unconditional branch.

  Args:
    encoder: the model's text encoders.
    params: their parameters by name.
    tokenize: of the model.
    prompts: of the batch.
    settings: clip_skip, weighted_prompts and long_prompts.
    force_zeros: without negative prompts the unconditional branch is zeros, as
      the base's model_index.json asks, and not an encoded ''. An explicit '' is
      always encoded.
    guided: whether there is an unconditional branch.
    least: chunks of every text, see `tokenize_prompts`.
    place: puts tokens, int32 [n, 2, 77], on the devices that share them.

  Returns:
    One entry for the prompts and, if guided, one for the unconditional branch.

  Raises:
    ValueError: for lists of different lengths, or images whose prompts take
      different numbers of chunks.
  """
  zeros = guided and force_zeros and prompts.negative_prompts is None
  divided = tokenize_prompts(
    tokenize,
    prompts,
    weighted=settings.weighted_prompts,
    long=settings.long_prompts,
    negative=guided and not zeros,
    least=least,
  )
  encoded = [
    encoder.encode_chunks(params, tokens, weights, tokenize.empty, skip, place)
    # clip_skip does not apply to negative prompts, as in diffusers.
    for (tokens, weights), skip in zip(divided, (settings.clip_skip, 0))
  ]
  if zeros:
    encoded.append(jax.tree.map(jnp.zeros_like, encoded[0]))
  return encoded


def tokenize_prompts(
  tokenize: tokenizer.Tokenizer,
  prompts: Prompts,
  *,
  weighted: bool,
  long: bool,
  negative: bool,
  least: int = 1,
) -> list[Chunks]:
  """Tokenizes prompts and, if wanted, negative prompts into equal chunks.

  Args:
    tokenize: of the model.
    prompts: of the batch.
    weighted: parses (words:1.3) as a weight, see prompt_weighting.parse.
    long: splits prompts into k chunks instead of truncating, see
      chunking.divide. The shorter of a prompt and its negative prompt is
      padded with chunks of ''; k must be the same for all images, which would
      otherwise depend on each other.
    negative: whether to tokenize negative prompts; where None, they are ''.
    least: chunks that every text has at least, those of the captions that the
      model was trained on; prompts that are not `long` are cut behind them.

  Raises:
    ValueError: for lists of different lengths, or images of different k.
  """
  count = len(prompts.prompts)
  negatives = prompts.negative_prompts
  if negatives is None:
    negatives = [''] * count
  if len(negatives) != count:
    raise ValueError(
      f'{len(negatives)} negative prompts for {count} prompts: pass one for '
      'each'
    )
  texts = [(prompts.prompts, prompts.prompts_2)]
  if negative:
    texts.append((negatives, prompts.negative_prompts_2))
  limit = None if long else least
  divided = [
    tokenize.chunks(text, text_2, weighted=weighted, limit=limit)
    for text, text_2 in texts
  ]
  taken = [chunking.count(tokens, tokenize.empty) for tokens, _ in divided]
  counts = sorted(set(np.max(taken, axis=0).clip(least).tolist()))
  if len(counts) > 1:
    raise ValueError(
      f'some prompts take {counts[0]} and some {counts[-1]} chunks of up to '
      f'{chunking.CONTENT} tokens, and no image may depend on another: '
      'sample those of each number by themselves'
    )
  return [
    chunking.lengthen(tokens, weights, tokenize.empty, counts[0])
    for tokens, weights in divided
  ]


def repeat_rows(
  sizes: dict[str, Any], count: int
) -> dict[str, Float32[np.ndarray, 'b ...']]:
  """Repeats one image's micro-conditioning for all rows of a batch."""
  rows = {
    name: np.tile(np.float32(value), (count, 1))
    for name, value in sizes.items()
  }
  return rows | {'aesthetic_score': rows['aesthetic_score'][:, 0]}


@functools.partial(jax.jit, static_argnames='model')
def vector(
  model: sdxl.SDXL, pooled: Float[Array, 'b p'], sizes: dict[str, Array]
) -> Float[Array, 'b v']:
  """Joins pooled text and micro-conditioning, see SDXL.vector."""
  return model.vector(pooled, sizes)
