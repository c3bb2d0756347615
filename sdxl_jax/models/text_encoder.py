"""Tokens > context and pooled, the text as the UNet reads it (SDXL 2.1)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.models import clip, lora


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """The towers of a model by their published names; the refiner has one.

  Params are {'text_encoder': CLIP-L's, 'text_encoder_2': bigG's}.
  """

  text_encoder: clip.CLIPTextConfig | None
  text_encoder_2: clip.CLIPTextConfig

  def init(self, key):
    """Fresh params of both towers."""
    ids = jnp.zeros((1, self.text_encoder_2.max_position_embeddings), jnp.int32)
    return {
      name: net.init(jax.random.fold_in(key, row), ids)['params']
      for row, (name, net) in self.towers.items()
    }

  @property
  def towers(self):
    """{row of the tokens: (name, net)}."""
    names = 'text_encoder', 'text_encoder_2'
    configs = self.text_encoder, self.text_encoder_2
    return {
      row: (name, clip.CLIPText(config))
      for row, (name, config) in enumerate(zip(names, configs))
      if config is not None
    }

  @functools.partial(jax.jit, static_argnames=('self', 'clip_skip'))
  def encode(self, params, tokens, clip_skip=0):
    """Tokens [b, 2, 77] > context [b, 77, 2048], pooled [b, 1280].

    The context joins the towers' penultimate hidden states, without the final
    norm, CLIP-L first; `clip_skip` goes as many blocks further back. Pooled is
    bigG's projection at the end of text, whatever `clip_skip`.
    """
    contexts = []
    for row, (name, net) in self.towers.items():
      hidden_states, pooled = lora.apply(net, name, params, tokens[:, row])
      if not 0 <= clip_skip <= len(hidden_states) - 2:
        raise ValueError(
          f'clip_skip {clip_skip} is not in 0..{len(hidden_states) - 2}, the '
          f'blocks of {name} that can be skipped'
        )
      contexts.append(hidden_states[-2 - clip_skip])
    return jnp.concatenate(contexts, axis=-1), pooled

  def encode_chunks(self, params, tokens, weights, empty, clip_skip, place):
    """[b, k, 2, 77] > context [b, 77 k, 2048], pooled [b, 1280].

    Each chunk is encoded by itself; pooled is the first one's. `weights` move
    the context only, see `emphasize`; `empty` [2, 77] are the tokens of ''.
    """
    b, k, rows, length = tokens.shape
    tokens, weights = (x.reshape(-1, rows, length) for x in (tokens, weights))
    context, pooled = self.encode(params, place(tokens), clip_skip)
    if (weights != 1).any():
      origin, _ = self.encode(params, empty[None], clip_skip)
      context = emphasize(context, origin, self.channel_weights(weights))
    return context.reshape(b, k * length, -1), pooled.reshape(b, k, -1)[:, 0]

  def channel_weights(self, weights):
    """[b, 2, 77] > [b, 77, 2048]: each tower's channels have its own row's."""
    widths = [net.config.hidden_size for _, net in self.towers.values()]
    rows = weights[:, list(self.towers)].swapaxes(1, 2)
    return np.repeat(rows, widths, axis=-1)


def emphasize(context, empty, w):
  """empty + w (context - empty): a token's weight, as ComfyUI understands it.

  It draws the context away from, or towards, what '' has at that position.
  Written so that weight 1 gives the context itself bit for bit, and 0 the empty
  one; other tokens have read a token of weight 0 all the same. AUTOMATIC1111's
  web UI multiplies instead and rescales the whole to its old mean, by which
  the weight of one word changes all others.
  """
  return (w * context + (1 - w) * empty).astype(context.dtype)


def drop(key, context, pooled, rate, together=True):
  """Zero an example's text with probability `rate`, for free guidance.

  One draw per example drops context and pooled together: guidance asks for the
  net without any text, and only such examples teach it. With `together` false
  each has its own draw, as in sgm's GeneralConditioner (`ucg_rate`).
  """
  keys = [key, key] if together else jax.random.split(key)
  keep, keep_pooled = (
    jax.random.bernoulli(k, 1.0 - rate, (len(pooled), 1)) for k in keys
  )
  return context * keep[..., None], pooled * keep_pooled
