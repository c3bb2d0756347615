"""Adds words that were learned by textual inversion to a pipeline's parts.

The vectors of a word are appended to the token embeddings of the text encoder,
and the tokenizer gets a token for each of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from sdxl_jax.checkpoints import loading
from sdxl_jax.models import sdxl
from sdxl_jax.text import prompt_brackets, tokenizer
from sdxl_jax.weights import checked_cast, textual_inversion

TEXT_ENCODERS = ('text_encoder', 'text_encoder_2')  # by row of the tokens
TABLE = ('text_model', 'embeddings', 'token_embedding', 'embedding')


class Parts(NamedTuple):
  """What changes in a pipeline."""

  model: sdxl.SDXL
  params: dict[str, Any]
  tokenize: tokenizer.Tokenizer
  notes: tuple[str, ...]


def widths_of(model: sdxl.SDXL) -> dict[str, int]:
  """Returns {text encoder: width of its embeddings} of a model, in order."""
  configs = model.configs
  return {n: configs[n].hidden_size for n in TEXT_ENCODERS if n in configs}


def add(
  parts: Parts,
  words: Sequence[textual_inversion.Word],
  shard_of: Callable[[str], Callable[[Any], Any]],
) -> Parts:
  """Returns the parts of a pipeline with some words.

  Args:
    parts: of the pipeline.
    words: of files or of a run, of the widths of the model.
    shard_of: (net) -> the function that places its arrays, see
      loading.make_sharding_fn.

  Raises:
    ValueError: for a word that the vocabulary has already.
  """
  widths = widths_of(parts.model)
  counts = [
    {w.name: len(w.vectors[n]) for w in words if n in w.vectors}
    for n in TEXT_ENCODERS
  ]
  names = [aliases(words, n) if n in widths else {} for n in TEXT_ENCODERS]
  try:
    tokenize, ids = parts.tokenize.with_words(counts, names)
  except ValueError as error:
    files = ', '.join(dict.fromkeys(str(word.path) for word in words))
    raise ValueError(f'embedding {files}: {error}') from None
  # Token embeddings grow; the rest of each net stays.
  params, fields = dict(parts.params), {n: {} for n in parts.model.configs}
  for name, rows in zip(TEXT_ENCODERS, ids):
    vectors = [word.vectors[name] for word in words if name in word.vectors]
    if vectors:
      table = grow(params[name], rows[0], np.concatenate(vectors))
      params[name] = replace_table(params[name], table, shard_of(name))
      fields[name] = {'vocab_size': len(table)}
  return Parts(
    parts.model.replace_each(fields),
    params,
    tokenize,
    parts.notes + tuple(notes(words, widths)),
  )


def aliases(
  words: Sequence[textual_inversion.Word], encoder: str
) -> dict[str, str | None]:
  """Returns further names by which prompts use words, {name: word}.

  'embedding:NAME' is ComfyUI's syntax, where a text encoder without vectors of
  the word gets nothing; the name of the file as a word is A1111's. A name that
  two files share is of neither.
  """
  found, shared = {}, set()
  for word in words:
    has_vectors = encoder in word.vectors
    target = word.name if has_vectors else None
    names = [f'{prompt_brackets.MARK}{n}' for n in (word.name, *word.aliases)]
    names += word.aliases if has_vectors else ()
    for name in dict.fromkeys(names):
      shared |= {name} & set(found)
      found[name] = target
  return {name: word for name, word in found.items() if name not in shared}


def table_of(params: dict[str, Any]) -> Any:
  """Returns the token embeddings of a text encoder, [tokens, width]."""
  return traverse_util.flatten_dict(params)[TABLE]


def grow(params: dict[str, Any], count: int, vectors: np.ndarray) -> np.ndarray:
  """Returns the token embeddings of a text encoder with more of them.

  Args:
    params: of the text encoder.
    count: rows of its table that stay. Tables that were padded have more.
    vectors: float32 [n, width], to append.

  Raises:
    ValueError: if the table has fewer rows than the tokenizer has tokens.
  """
  table = np.asarray(table_of(params))
  if len(table) < count:
    raise ValueError(
      f'the tokenizer has {count} tokens, and its text encoder only '
      f'{len(table)} embeddings: the two are of different models'
    )
  checked_cast.check_finite('a learned word', vectors, table.dtype)
  return np.concatenate([table[:count], vectors.astype(table.dtype)])


def replace_table(
  params: dict[str, Any], table: np.ndarray, shard: Callable[[Any], Any]
) -> dict[str, Any]:
  """Returns the parameters of a text encoder with other token embeddings."""
  placed = loading.put_params(
    traverse_util.unflatten_dict({TABLE: table}), shard
  )
  return traverse_util.unflatten_dict(
    traverse_util.flatten_dict(params) | traverse_util.flatten_dict(placed)
  )


def notes(
  words: Sequence[textual_inversion.Word], widths: Mapping[str, int]
) -> Iterator[str]:
  """Yields a line about each word: its name, and what it lacks."""
  for word in words:
    counts = ', '.join(
      f'{len(word.vectors[n])} for {n}' for n in widths if n in word.vectors
    )
    note = f'{word.path}: the word {word.name!r}, vectors: {counts or "none"}'
    if missing := [name for name in widths if name not in word.vectors]:
      note += (
        f'. It has none for {" and ".join(missing)}, of width '
        f'{" and ".join(str(widths[n]) for n in missing)}, where the word is '
        'read as plain text'
      )
    yield note
