"""Tokens > context and pooled, the text as the UNet reads it (SDXL 2.1)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from sdxl_jax.models import clip


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
      variables = {'params': params[name]}
      hidden_states, pooled = net.apply(variables, tokens[:, row])
      if not 0 <= clip_skip <= len(hidden_states) - 2:
        raise ValueError(
          f'clip_skip {clip_skip} is not in 0..{len(hidden_states) - 2}, the '
          f'blocks of {name} that can be skipped'
        )
      contexts.append(hidden_states[-2 - clip_skip])
    return jnp.concatenate(contexts, axis=-1), pooled

  def encode_prompts(
    self,
    params,
    tokenize,
    prompts,
    negative_prompts=None,
    *,
    force_zeros,
    prompts_2=None,
    negative_prompts_2=None,
    clip_skip=0,
  ):
    """Lists of prompts > (context, pooled) of them and of their opposites.

    Without negative prompts the opposite is zeros where `force_zeros` (the
    base's model_index.json says so), else the encoded '' (the refiner's). An
    explicit '' is always encoded. `prompts_2` are for bigG; `clip_skip` does
    not apply to negative prompts.
    """
    cond = self.encode(params, tokenize(prompts, prompts_2), clip_skip)
    if negative_prompts is None and force_zeros:
      return cond, jax.tree.map(jnp.zeros_like, cond)
    if negative_prompts is None:
      negative_prompts = [''] * len(prompts)
    if len(negative_prompts) != len(prompts):
      raise ValueError(
        f'{len(negative_prompts)} negative prompts for {len(prompts)} prompts: '
        'give one for each'
      )
    tokens = tokenize(negative_prompts, negative_prompts_2)
    return cond, self.encode(params, tokens)


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
