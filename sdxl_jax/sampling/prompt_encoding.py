"""Encodes prompts into the conditioning of the denoising loop."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from sdxl_jax.diffusion import guidance
from sdxl_jax.distributed import batch_padding
from sdxl_jax.models import sdxl, text_encoder
from sdxl_jax.programs import compile_progress
from sdxl_jax.sampling import pipelines, prompt_plan, validation
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.text import chunking, tokenizer

Tokens = Int32[np.ndarray, 'b k 2 77']
Weights = Float32[np.ndarray, 'b k 2 77']
Chunks = tuple[Tokens, Weights]
# context [b, 77 k, 2048] and pooled [b, 1280].
Encoded = tuple[Float[Array, 'b n d'], Float[Array, 'b p']]


class Conditioning(NamedTuple):
  """The inputs of the UNet that stay the same at every step.

  With guidance there are two rows per image, or one more than AND combines, see
  guidance.interleave_rows.
  """

  # [b, 77 k, 2048], or the keys and values that cross-attention makes of it.
  context: Any
  vector: Float[Array, 'b v']


def make_conditioning(
  pipeline: pipelines.Pipeline,
  rows: batch_padding.Rows,
  plan: prompt_plan.Plan,
  conditions: tuple[dict[str, Any], dict[str, Any]],
  settings: SampleSettings,
) -> list[tuple[int, Conditioning]]:
  """Encodes prompts and micro-conditioning of a batch.

  Args:
    pipeline: base or refiner.
    rows: the batch on its devices.
    plan: of the prompts of all rows.
    conditions: micro-conditioning of both branches, see
      settings.micro_conditions.
    settings: of the batch.

  Returns:
    Of each stage its first step and its Conditioning.

  Raises:
    ValueError: for images whose prompts take different numbers of chunks, a
      clip_skip without such a block, or AND without guidance.
  """
  model = pipeline.model
  guided = validation.uses_cfg(model, settings.guidance_scale)
  validation.check_combined(plan.weights, guided, settings.guidance_interval)
  with compile_progress.naming('the text encoders'):
    encoded = encode_stages(
      model.text,
      pipeline.on_device('text_encoder', 'text_encoder_2'),
      pipeline.tokenize,
      plan,
      settings,
      force_zeros=pipeline.force_zeros,
      guided=guided,
      least=pipeline.text_chunks,
      place=rows.place,
    )
  made = {}
  for stage, (*positive, uncond) in zip(plan.stages, encoded):
    branches = [(encoding, conditions[0]) for encoding in positive]
    if guided:
      branches.insert(0, (uncond, conditions[1]))
    if stage.texts not in made:  # stages may come back
      made[stage.texts] = join_branches(model, branches)
  # Parameters of an offloaded text encoder leave the device after this.
  jax.block_until_ready(list(made.values()))
  return [(stage.begin, made[stage.texts]) for stage in plan.stages]


def join_branches(
  model: sdxl.SDXL, branches: Sequence[tuple[Encoded, dict[str, Any]]]
) -> Conditioning:
  """Joins the encoded branches of a stage and their micro-conditioning."""
  joined = [
    Conditioning(
      context, vector(model, pooled, repeat_rows(sizes, len(pooled)))
    )
    for (context, pooled), sizes in branches
  ]
  if len(joined) == 1:
    return joined[0]
  return jax.tree.map(lambda *rows: guidance.interleave_rows(rows), *joined)


def conditional(conditioning: Conditioning, branches: int) -> Conditioning:
  """Returns the conditioning without the unconditional rows.

  Args:
    conditioning: as made for guidance.
    branches: rows of each image.
  """

  def without_first(rows, axis):
    shape = rows.shape
    rows = rows.reshape(*shape[:axis], -1, branches, *shape[axis + 1 :])
    rows = jax.lax.slice_in_dim(rows, 1, branches, axis=axis + 1)
    return rows.reshape(*shape[:axis], -1, *shape[axis + 1 :])

  # Of a scanned stack, keys and values have the axis of its blocks first.
  context = jax.tree.map(
    lambda rows: without_first(rows, rows.ndim - 3), conditioning.context
  )
  return Conditioning(context, without_first(conditioning.vector, 0))


def encode_stages(
  encoder: text_encoder.TextEncoder,
  params: dict[str, Any],
  tokenize: tokenizer.Tokenizer,
  plan: prompt_plan.Plan,
  settings: SampleSettings,
  *,
  force_zeros: bool,
  guided: bool,
  least: int = 1,
  place: Callable[..., Array] = jnp.asarray,
) -> list[list[Encoded | None]]:
  """Encodes prompts and, where guidance needs it, the unconditional branch.

  Args:
    encoder: the model's text encoders.
    params: their parameters by name.
    tokenize: of the model.
    plan: of the batch.
    settings: clip_skip, weighted_prompts, prompt_syntax and long_prompts.
    force_zeros: without negative prompts the unconditional branch is zeros, as
      in the base's model_index.json, and not an encoded ''. An explicit '' is
      always encoded.
    guided: whether there is an unconditional branch.
    least: chunks of every text, see `tokenize_branches`.
    place: puts tokens, int32 [n, 2, 77], on the devices that share them.

  Returns:
    Of each stage its positive branches and the unconditional one, None unless
    guided. A branch of several stages is encoded once.

  Raises:
    ValueError: for images whose prompts take different numbers of chunks.
  """
  zeros = guided and force_zeros and not plan.has_negative
  # clip_skip does not apply to negative prompts, as in diffusers.
  positive = {b: settings.clip_skip for s in plan.stages for b in s.positive}
  negative = {} if zeros or not guided else {s.negative: 0 for s in plan.stages}
  branches = [*positive.items(), *negative.items()]
  divided = tokenize_branches(
    tokenize, [branch for branch, _ in branches], settings, least
  )
  encoded = {}
  for branch, (tokens, weights) in zip(branches, divided):
    encoded[branch] = encoder.encode_chunks(
      params, tokens, weights, tokenize.empty, branch[1], place
    )
  stages = []
  for stage in plan.stages:
    found = [encoded[branch, settings.clip_skip] for branch in stage.positive]
    uncond = encoded.get((stage.negative, 0)) if guided else None
    if zeros:
      uncond = jax.tree.map(jnp.zeros_like, found[0])
    stages.append([*found, uncond])
  return stages


def tokenize_branches(
  tokenize: tokenizer.Tokenizer,
  branches: Sequence[prompt_plan.Branch],
  settings: SampleSettings,
  least: int = 1,
) -> list[Chunks]:
  """Tokenizes the texts of all branches and stages into equal chunks.

  Args:
    tokenize: of the model.
    branches: of the batch.
    settings: weighted_prompts and prompt_syntax, see prompt_weighting.parse;
      long_prompts splits prompts into k chunks instead of truncating, see
      chunking.divide. The texts of an image that take fewer are padded with
      chunks of ''; k must be the same for all images, which would otherwise
      depend on each other.
    least: chunks that every text has at least, those of the captions that the
      model was trained on; prompts that are not long are cut behind them.

  Raises:
    ValueError: for images of different k.
  """
  limit = None if settings.long_prompts else least
  divided = [
    tokenize.chunks(
      branch.texts,
      branch.texts_2,
      weighted=settings.weighted_prompts,
      syntax=settings.prompt_syntax,
      limit=limit,
    )
    for branch in branches
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
    chunking.lengthen(
      tokens[:, : counts[0]], weights[:, : counts[0]], tokenize.empty, counts[0]
    )
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
