"""The vectors that words begin with: token embeddings of other words."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdxl_jax.distributed import sharding
from sdxl_jax.models import learned_vectors, sdxl
from sdxl_jax.sampling import learned_words
from sdxl_jax.text import tokenizer
from sdxl_jax.weights import textual_inversion


def initial(
  model: sdxl.SDXL,
  params: dict[str, Any],
  tokenize: tokenizer.Tokenizer,
  mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
  """Returns the vectors that the words of a run begin with, float32.

  They are the vectors of a file, or the token embeddings of the init_word, over
  again where a word has more vectors than that has tokens.

  Args:
    model: of the run.
    params: {net: parameters} of the text encoders.
    tokenize: of the weights that the run starts from, without its words.
    mesh: of the run.

  Returns:
    {text encoder: {name of the word: {'vectors': [n, width]}}}.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for an init_word of more tokens than the word has vectors, or a
      file of another number of vectors.
  """
  take = jax.jit(
    lambda table, ids: table[ids].astype(jnp.float32),
    out_shardings=sharding.replicated(mesh),
  )
  widths = learned_words.widths_of(model)
  stored = {w.name: read(w, widths) for w in model.words if w.weights}
  tree = {}
  for row, net in enumerate(learned_vectors.NETS):
    if net in widths:
      table = learned_words.table_of(params[net])
      vectors = {
        w.name: take(table, first_ids(w, tokenize.rows[row]))
        for w in model.words
        if not w.weights
      }
      vectors |= {name: found[net] for name, found in stored.items()}
      tree[net] = {name: {'vectors': x} for name, x in vectors.items()}
  return tree


def read(
  word: learned_vectors.Word, widths: dict[str, int]
) -> dict[str, np.ndarray]:
  """Reads {text encoder: float32 [n, width]} that a word begins with.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a file of several words, or of another number of vectors.
  """
  found = textual_inversion.load(
    [f'{word.token_string}={word.weights}'], widths
  )
  counts = {net: len(x) for net, x in found[0].vectors.items()}
  if counts != dict.fromkeys(widths, word.num_vectors_per_token):
    raise ValueError(
      f'config.words.{word.name}.weights is {word.weights}, which has the '
      f'vectors {counts}, and num_vectors_per_token is '
      f'{word.num_vectors_per_token} for {" and ".join(widths)}: set it to the '
      "file's, or begin with an init_word"
    )
  return found[0].vectors


def first_ids(word: learned_vectors.Word, row: Any) -> np.ndarray:
  """Returns the ids of the tokens whose embeddings a word begins with.

  Args:
    word: to learn.
    row: the CLIPTokenizer of a text encoder.

  Raises:
    ValueError: if there are more tokens than vectors.
  """
  ids = row(word.init_word, add_special_tokens=False).input_ids
  count = word.num_vectors_per_token
  if len(ids) > count:
    raise ValueError(
      f'config.words.{word.name}.init_word is {word.init_word!r}, which has '
      f'{len(ids)} tokens, and num_vectors_per_token is {count}: raise it to '
      f'{len(ids)}, or take a shorter init_word'
    )
  return np.array(list(itertools.islice(itertools.cycle(ids), count)), np.int32)
