"""Prompts in chunks: up to 75 tokens, each with start, end and padding.

A prompt, or a caption, that is too long for one chunk goes on in the next; in a
prompt, BREAK begins the next one too. Both sampling and training divide here.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdxl_jax.text import added_tokens, prompt_weighting

LENGTH = 77
CONTENT = LENGTH - 2  # without start and end

Tokens = Int[np.ndarray, 'b k 2 77']
Weights = Float[np.ndarray, 'b k 2 77']
Empty = Int[np.ndarray, '2 77']


class Chunk(NamedTuple):
  """Up to 75 tokens, without start, end and padding."""

  ids: list[int]
  weights: Float[np.ndarray, ' n']  # of each token


def count_for(max_token_length: int) -> int:
  """Returns the chunks that hold so many tokens, a multiple of 75."""
  return max_token_length // CONTENT


def shape(count: int) -> tuple[int, ...]:
  """Returns the shape of the tokens of a caption of `count` chunks."""
  return (2, LENGTH) if count == 1 else (count, 2, LENGTH)


def divide(
  row: Any,
  prompts: Sequence[str],
  syntax: str | None,
  limit: int | None,
  expansions: added_tokens.Expansions,
) -> tuple[list[list[Chunk]], list[str]]:
  """Tokenizes prompts by one CLIPTokenizer, and divides them into chunks.

  Args:
    row: the tokenizer. Each row is divided alone, since bigG may have more
      tokens than CLIP-L, see tokenizer.
    prompts: texts.
    syntax: of prompt weighting, see prompt_weighting.parse; None: all is text.
    limit: chunks at most of a prompt, or of each part that BREAK divides it
      into, see `chunk_ends`.
    expansions: of tokens that stand for others, see added_tokens.expand.

  Returns:
    (chunks, cut): the chunks of each prompt, and the text that is cut from it,
    '' if nothing is.
  """
  if syntax is None:
    texts = [(prompt, np.ones(len(prompt))) for prompt in prompts]
    return divide_texts(row, texts, limit, expansions)
  parts = [prompt_weighting.split_at_breaks(p, syntax) for p in prompts]
  found, found_cut = divide_texts(
    row, list(itertools.chain(*parts)), limit, expansions
  )
  # Join the chunks of the parts of each prompt.
  chunks, cut, i = [], [], 0
  for texts in parts:
    span = slice(i, i + len(texts))
    chunks.append(list(itertools.chain(*found[span])))
    cut.append(' '.join(filter(None, found_cut[span])))
    i = span.stop
  return chunks, cut


def divide_texts(
  row: Any,
  weighted_texts: Sequence[prompt_weighting.Text],
  limit: int | None,
  expansions: added_tokens.Expansions,
) -> tuple[list[list[Chunk]], list[str]]:
  """Divides texts with the weights of their characters, see `divide`."""
  texts, weights = zip(*weighted_texts)
  # Padding and cutting are done here, because the tokenizer would set fields of
  # its own for them, which is not thread-safe.
  encoded = row(list(texts), return_offsets_mapping=True, verbose=False)
  chunks, cut = [], []
  for i, text in enumerate(texts):
    ids = encoded['input_ids'][i][1:-1]
    begins = [begin for begin, _ in encoded['offset_mapping'][i][1:-1]]
    words = None
    if not expansions.keys().isdisjoint(ids):
      tokens = zip(ids, begins, encoded.word_ids(i)[1:-1])
      tokens = added_tokens.expand(list(tokens), expansions)
      ids, begins, words = zip(*tokens) if tokens else ((), (), ())
    ends = [len(ids)]
    if len(ids) > CONTENT:
      ends = chunk_ends(words or encoded.word_ids(i)[1:-1], limit)
    cut.append(text[begins[ends[-1]] :] if ends[-1] < len(ids) else '')
    spans = [slice(*span) for span in zip([0, *ends], ends)]
    chunks.append(
      [Chunk(list(ids[s]), weights[i][list(begins[s])]) for s in spans]
    )
  return chunks, cut


def chunk_ends(words: Sequence[int | None], limit: int | None) -> list[int]:
  """Returns where chunks end, given the word index of each token.

  A chunk ends where a word does, as CLIP divides words, unless a word is longer
  than a chunk.

  Args:
    words: word index of each token.
    limit: chunks at most; the last one of so many takes all tokens that fit,
      and those behind it are cut. None: there are as many as it takes.
  """
  count, ends = len(words), []
  word_ends = [i for i in range(1, count) if words[i] != words[i - 1]] + [count]
  # Each chunk takes as many whole words as fit.
  begin = 0
  while begin < count and len(ends) != limit:
    full = min(begin + CONTENT, count)
    fitting = [end for end in word_ends if begin < end <= full]
    is_last = limit is not None and len(ends) == limit - 1
    begin = full if is_last else max(fitting, default=full)
    ends.append(begin)
  return ends


def stack(
  rows: Sequence[list[list[Chunk]]], empty: Empty
) -> tuple[Tokens, Weights]:
  """Stacks the chunks of each row and prompt, with start, end and padding."""
  k = max(len(chunks) for prompts in rows for chunks in prompts)
  # Chunks of '', which are then overwritten.
  tokens = np.tile(empty, (len(rows[0]), k, 1, 1))
  weights = np.ones(tokens.shape, np.float32)
  for row, prompts in enumerate(rows):
    for i, chunks in enumerate(prompts):
      for j, chunk in enumerate(chunks):
        end = 1 + len(chunk.ids)
        tokens[i, j, row, 1:end] = chunk.ids
        tokens[i, j, row, end] = empty[row, 1]
        weights[i, j, row, 1:end] = chunk.weights
  return tokens, weights


def count(tokens: Tokens, empty: Empty) -> Int[np.ndarray, ' b']:
  """Counts the chunks of each prompt up to its last text; '' has one."""
  is_text = (tokens != empty).any((2, 3))
  numbers = np.arange(1, 1 + is_text.shape[1])
  return np.maximum((is_text * numbers).max(1), 1)


def lengthen(
  tokens: Tokens, weights: Weights, empty: Empty, count: int
) -> tuple[Int[np.ndarray, 'b {count} 2 77'], Float[np.ndarray, 'b _ 2 77']]:
  """Appends chunks of '' up to `count` of them."""
  b, k = tokens.shape[:2]
  more = np.tile(empty, (b, count - k, 1, 1))
  ones = np.ones(more.shape, np.float32)
  return np.concatenate([tokens, more], 1), np.concatenate([weights, ones], 1)
