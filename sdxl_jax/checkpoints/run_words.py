"""Words that a run learns: in its tokenizer, and from its checkpoints."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import config_dict

from sdxl_jax.checkpoints import (
  orbax_checkpoint,
  run_params,
  source_configs,
)
from sdxl_jax.distributed import multihost
from sdxl_jax.models import from_config, learned_vectors
from sdxl_jax.text import prompt_brackets, tokenizer
from sdxl_jax.weights import formats, textual_inversion

Source = str | pathlib.Path
RENAME = 'set another token_string, such as <my-style>'


def load_tokenizer(
  config: config_dict.ConfigDict, with_words: bool
) -> tokenizer.Tokenizer:
  """Loads the tokenizer of the weights that a run starts from.

  Args:
    config: of the run.
    with_words: whether to add the words that it learns.
  """
  base = source_configs.base_weights(config.init_from)
  encoders = config.text_encoder, config.text_encoder_2
  sizes = tuple(encoder and encoder.vocab_size for encoder in encoders)
  found = tokenizer.load(base, formats.added_tokens(base), sizes)
  if not with_words:
    return found
  return add_to_tokenizer(found, from_config.make_words(config), sizes)


def add_to_tokenizer(
  tokenize: tokenizer.Tokenizer,
  words: Sequence[learned_vectors.Word],
  vocab_sizes: tuple[int | None, ...],
) -> tokenizer.Tokenizer:
  """Returns a tokenizer with the words that a run learns.

  Args:
    tokenize: of the weights that it starts from.
    words: to learn.
    vocab_sizes: embeddings of each text encoder; None where there is none.

  Raises:
    ValueError: for a word that the tokenizer has, or text encoders that have
      other embeddings than it has tokens.
  """
  for row, size in zip(tokenize.rows, vocab_sizes):
    # The vectors follow the table; see learned_vectors.
    if size is not None and len(row) != size:
      raise ValueError(
        f'config.words: the tokenizer has {len(row)} tokens, and its text '
        f'encoder {size} embeddings; to learn words, start from weights that '
        'have as many of both'
      )
  counts = {
    word.token_string: word.num_vectors_per_token
    for word in learned_vectors.in_order(words)
  }
  names = {f'{prompt_brackets.MARK}{name}': name for name in counts}
  has_row = [size is not None for size in vocab_sizes]
  try:
    found, _ = tokenize.with_words(
      [counts if has else {} for has in has_row],
      [names if has else {} for has in has_row],
      RENAME,
    )
  except ValueError as error:
    raise ValueError(f'config.words: {error}') from None
  return found


def load(
  source: Source,
  config: config_dict.ConfigDict | None = None,
  mesh: jax.sharding.Mesh | None = None,
  average: str = 'ema',
) -> list[textual_inversion.Word]:
  """Loads the words of one checkpoint of a run.

  Args:
    source: workdir, or one of its checkpoints.
    config: of the run; None: the saved one.
    mesh: of the devices; None: the default one.
    average: see run_params.restore.

  Returns:
    The words in the order of the config's names; [] if it learned none.
  """
  folder = orbax_checkpoint.find(source)
  if config is None:
    config = source_configs.saved_config(folder)
  if 'words' not in config.trained:
    return []
  tree = run_params.restore(folder, mesh, ['words'], average)['words']
  tree = jax.tree.map(multihost.fetch, tree)
  words = learned_vectors.in_order(from_config.make_words(config))
  return [
    textual_inversion.Word(
      word.token_string, vectors_of(tree, word.name), (), folder
    )
    for word in words
  ]


def vectors_of(tree: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
  """Returns {text encoder: float32 [n, width]} of a word by its config name."""
  return {
    net: np.asarray(words[name]['vectors'], np.float32)
    for net, words in tree.items()
  }
