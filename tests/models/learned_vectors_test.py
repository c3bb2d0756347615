"""Ids behind a table of token embeddings stand for the vectors of words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import clip, learned_vectors, text_encoder

SMALL = dict(
  vocab_size=20,
  max_position_embeddings=6,
  intermediate_size=8,
  num_hidden_layers=2,
  num_attention_heads=1,
)
TABLE = ('text_model', 'embeddings', 'token_embedding')
TEXT = text_encoder.TextEncoder(
  clip.CLIPTextConfig(hidden_size=8, **SMALL),
  clip.CLIPTextConfig(hidden_size=12, projection_dim=4, **SMALL),
)
WORDS = [
  learned_vectors.Word('b', '<b>', 2, 'x'),
  learned_vectors.Word('a', '<a>', 1, 'x'),
]
TOKENS = np.array([[[1, 20, 5, 21, 22, 19], [1, 21, 22, 20, 3, 19]]], np.int32)


@pytest.fixture(scope='module')
def params():
  configs = {n: c.config for n, c in TEXT.text_encoders.values()}
  words = learned_vectors.init(jax.random.key(1), WORDS, configs)
  return TEXT.init(jax.random.key(0)) | {'words': words}


def grown(params):
  """The same text encoders, with the vectors as rows of the tables."""
  fields, found = {}, {}
  for name, net in TEXT.text_encoders.values():
    words = params['words'][name]
    rows = [words[n]['vectors'] for n in ('a', 'b')]  # in this order

    def grow(path, x, rows=rows):
      is_table = tuple(key.key for key in path[:3]) == TABLE
      return jnp.concatenate([x, *rows]) if is_table else x

    found[name] = jax.tree_util.tree_map_with_path(grow, params[name])
    fields[name] = dataclasses.replace(net.config, vocab_size=23)
  return text_encoder.TextEncoder(**fields), found


def test_shapes(params):
  shapes = jax.tree.map(jnp.shape, params['words'])
  assert shapes == {
    'text_encoder': {'a': {'vectors': (1, 8)}, 'b': {'vectors': (2, 8)}},
    'text_encoder_2': {'a': {'vectors': (1, 12)}, 'b': {'vectors': (2, 12)}},
  }


def test_vectors_are_looked_up_like_rows_of_a_table(params):
  text, tables = grown(params)
  for tokens in (TOKENS, np.minimum(TOKENS, 19)):
    ours = TEXT.encode(params, tokens)
    for one, other in zip(ours, text.encode(tables, tokens)):
      np.testing.assert_array_equal(one, other)
  # Without words, such ids would be cut to the last row.
  assert (ours[0] != TEXT.encode(params, TOKENS)[0]).any()


def test_gradients_are_those_of_the_rows(params):
  """Of the vectors alone, and of each place of a word."""
  text, tables = grown(params)

  def loss(text, params, words=None):
    more = {} if words is None else {'words': words}
    context, pooled = text.encode(params | more, TOKENS)
    return jnp.sum(context**2) + jnp.sum(pooled**3)

  ours = jax.grad(lambda w: loss(TEXT, params, w))(params['words'])
  rows = jax.grad(lambda p: loss(text, p))(tables)
  for name in ('text_encoder', 'text_encoder_2'):
    table = rows[name]['text_model']['embeddings']['token_embedding']
    for word, span in ('a', slice(20, 21)), ('b', slice(21, 23)):
      found = ours[name][word]['vectors']
      expected = table['embedding'][span]
      assert np.abs(expected).max(1).all()
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
