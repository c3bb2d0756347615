"""Token embeddings of learned words, trained while the tables stay frozen.

Textual inversion (Gal et al. 2022): a word has vectors of its own for each text
encoder, {net: {name of the word: {'vectors': [n, width]}}}. The nets have no
code for it: in the context of `looked_up` the ids behind a text encoder's table
stand for these vectors, in the order of the words' names.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

NETS = ('text_encoder', 'text_encoder_2')


@dataclasses.dataclass(frozen=True)
class Word:
  """A word to learn; see config.words in configs/default.py."""

  name: str  # in the config
  token_string: str  # by which captions and prompts use it
  num_vectors_per_token: int
  init_word: str = ''  # text whose token embeddings it begins with, or
  weights: str = ''  # a file of textual inversion whose vectors it begins with


def in_order(words: Sequence[Word]) -> list[Word]:
  """Returns words in the order of their vectors, which is that of a tree."""
  return sorted(words, key=lambda word: word.name)


def init(
  key: PRNGKeyArray, words: Sequence[Word], configs: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns random vectors with the scale of CLIP's table, float32.

  Args:
    key: jax key.
    words: to learn.
    configs: {net: its config}; a refiner has one of the text encoders.

  Returns:
    {net: {name of the word: {'vectors': [n, width]}}}.
  """
  tree = {}
  for row, net in enumerate(n for n in NETS if n in configs):
    keys = jax.random.split(jax.random.fold_in(key, row), len(words))
    width = configs[net].hidden_size
    tree[net] = {
      word.name: {
        'vectors': 0.02
        * jax.random.normal(word_key, (word.num_vectors_per_token, width))
      }
      for word_key, word in zip(keys, in_order(words))
    }
  return tree


def stack(words: Mapping[str, Any]) -> Float[Array, 'n width']:
  """Stacks the vectors of all words of a text encoder, in their order."""
  return jnp.concatenate([words[name]['vectors'] for name in sorted(words)])


def looked_up(params: Mapping[str, Any], net: str) -> Any:
  """Returns a context in which a text encoder takes ids of learned words.

  Without any in `params` the program is unchanged.

  Args:
    params: {net: parameters}, maybe with 'words'.
    net: name of the text encoder that is applied in the context.
  """
  words = params.get('words', {}).get(net)
  if not words:
    return contextlib.nullcontext()
  return nn.intercept_methods(make_interceptor(stack(words)))


def make_interceptor(vectors: Float[Array, 'n width']) -> Callable:
  """Makes the interceptor by which ids behind a table stand for vectors."""

  def interceptor(method, args, kwargs, context):
    table = context.module
    is_table = isinstance(table, nn.Embed) and table.name == 'token_embedding'
    if not is_table or context.method_name != '__call__':
      return method(*args, **kwargs)
    # Vectors are cast after the look-up, so that the gradients of all places
    # of a word are summed in float32.
    (ids,) = args
    count = table.num_embeddings
    known = method(jnp.minimum(ids, count - 1))
    learned = vectors[jnp.clip(ids - count, 0, len(vectors) - 1)]
    return jnp.where(
      (ids >= count)[..., None], learned.astype(known.dtype), known
    )

  return interceptor
