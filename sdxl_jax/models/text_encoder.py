"""Encodes tokens to context and pooled, the UNet's text inputs (SDXL 2.1)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from sdxl_jax.models import clip, learned_vectors, lora

Params = dict[str, Any]  # {'text_encoder': CLIP-L's, 'text_encoder_2': bigG's}


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """The text encoders of a model; the refiner has only text_encoder_2."""

  text_encoder: clip.CLIPTextConfig | None
  text_encoder_2: clip.CLIPTextConfig

  def init(self, key: PRNGKeyArray) -> Params:
    """Returns fresh parameters of both text encoders."""
    ids = jnp.zeros((1, self.text_encoder_2.max_position_embeddings), jnp.int32)
    return {
      name: net.init(jax.random.fold_in(key, row), ids)['params']
      for row, (name, net) in self.text_encoders.items()
    }

  @property
  def text_encoders(self) -> dict[int, tuple[str, clip.CLIPText]]:
    """{row of the tokens: (name, net)}."""
    names = 'text_encoder', 'text_encoder_2'
    configs = self.text_encoder, self.text_encoder_2
    return {
      row: (name, clip.CLIPText(config))
      for row, (name, config) in enumerate(zip(names, configs))
      if config is not None
    }

  @property
  def vocab_sizes(self) -> tuple[int | None, int]:
    """Token embeddings of each text encoder; None where there is none."""
    first = self.text_encoder.vocab_size if self.text_encoder else None
    return first, self.text_encoder_2.vocab_size

  @functools.partial(jax.jit, static_argnames=('self', 'clip_skip'))
  def encode(
    self, params: Params, tokens: Int[ArrayLike, 'b *k 2 n'], clip_skip: int = 0
  ) -> tuple[Float[Array, 'b m context'], Float[Array, 'b pooled']]:
    """Returns (context, pooled) of one or several chunks of tokens per example.

    The context concatenates the penultimate hidden states of the text encoders
    without the final norm, CLIP-L first: [b, 77, 768 + 1280]. `clip_skip` goes
    as many blocks further back. Pooled is bigG's projection at the end of text,
    [b, 1280], whatever `clip_skip`. Of several chunks, [b, k, 2, 77], each is
    encoded alone, and the results are joined by `join_chunks`.
    """
    if tokens.ndim == 4:
      flat = tokens.reshape(-1, *tokens.shape[2:])
      return join_chunks(*self.encode(params, flat, clip_skip), len(tokens))
    self.check_clip_skip(clip_skip)
    contexts = []
    for row, (name, net) in self.text_encoders.items():
      with learned_vectors.looked_up(params, name):
        hidden_states, pooled = lora.apply(net, name, params, tokens[:, row])
      # -1 is the output of the last block, -2 the penultimate state.
      contexts.append(hidden_states[-2 - clip_skip])
    return jnp.concatenate(contexts, axis=-1), pooled

  def encode_chunks(
    self,
    params: Params,
    tokens: Int[np.ndarray, 'b k 2 n'],
    weights: Float[np.ndarray, 'b k 2 n'],
    empty: Int[np.ndarray, '2 n'],
    clip_skip: int,
    place: Callable,
  ) -> tuple[Float[Array, 'b k*n context'], Float[Array, 'b pooled']]:
    """Returns (context, pooled) of k chunks of tokens per example.

    Each chunk is encoded alone; pooled is the first chunk's.

    Args:
      params: of the text encoders.
      tokens: chunks of each example.
      weights: of the tokens; they change the context only, see
        `apply_prompt_weights`.
      empty: tokens of ''.
      clip_skip: see `encode`.
      place: puts tokens, int32 [b k, 2, n], on the devices of the batch.
    """
    b, _, rows, length = tokens.shape
    # All chunks of all examples are one batch.
    tokens, weights = (x.reshape(-1, rows, length) for x in (tokens, weights))
    context, pooled = self.encode(params, place(tokens), clip_skip)
    # Weights act relative to the context of ''.
    if (weights != 1).any():
      empty_context, _ = self.encode(params, empty[None], clip_skip)
      context = apply_prompt_weights(
        context, empty_context, self.channel_weights(weights)
      )
    return join_chunks(context, pooled, b)

  def check_clip_skip(self, clip_skip: int) -> None:
    """Raises ValueError for more blocks than a text encoder can skip."""
    for name, net in self.text_encoders.values():
      most = net.config.num_hidden_layers - 1
      if not 0 <= clip_skip <= most:
        raise ValueError(
          f'clip_skip {clip_skip} is not in 0..{most}, the blocks of {name} '
          'that can be skipped'
        )

  def channel_weights(
    self, weights: Float[np.ndarray, 'b 2 n']
  ) -> Float[np.ndarray, 'b n context']:
    """Repeats the weights of each text encoder's tokens over its channels."""
    encoders = self.text_encoders
    widths = [net.config.hidden_size for _, net in encoders.values()]
    # [b, n, encoders], then each column once per channel.
    rows = weights[:, list(encoders)].swapaxes(1, 2)
    return np.repeat(rows, widths, axis=-1)


def join_chunks(
  context: Float[Array, 'bk n context'],
  pooled: Float[Array, 'bk pooled'],
  b: int,
) -> tuple[Float[Array, 'b m context'], Float[Array, 'b pooled']]:
  """Joins the text of all chunks of each of b examples.

  Contexts are concatenated; pooled is the first chunk's.
  """
  pooled = pooled.reshape(b, -1, pooled.shape[-1])[:, 0]
  return context.reshape(b, -1, context.shape[-1]), pooled


def apply_prompt_weights(
  context: Float[ArrayLike, 'b n c'],
  empty: Float[ArrayLike, '1 n c'],
  weights: Float[ArrayLike, 'b n c'],
) -> Float[Array, 'b n c']:
  """Returns empty + weights (context - empty), ComfyUI's prompt weighting.

  The context moves away from, or towards, the context of '' at the same
  position. In this form weight 1 gives the context itself bit for bit, and 0
  the empty one; other tokens attend to a token of weight 0 all the same.
  AUTOMATIC1111's web UI multiplies instead and rescales the whole context to
  its old mean, by which the weight of one word changes all others.
  """
  return (weights * context + (1 - weights) * empty).astype(context.dtype)


def drop(
  key: PRNGKeyArray,
  context: Float[ArrayLike, 'b n c'],
  pooled: Float[ArrayLike, 'b p'],
  rate: Float[ArrayLike, ''],
) -> tuple[Float[Array, 'b n c'], Float[Array, 'b p']]:
  """Zeroes an example's text with probability `rate`, for guidance.

  Context and pooled are dropped together: guidance evaluates the net without
  any text, and only such examples train it for that. sgm's GeneralConditioner
  (`ucg_rate`) drops each by a random number of its own.
  """
  keep = jax.random.bernoulli(key, 1.0 - rate, (len(pooled), 1))
  return context * keep[..., None], pooled * keep
