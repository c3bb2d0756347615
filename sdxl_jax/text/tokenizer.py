"""Prompts to token ids, equal to transformers' CLIPTokenizer for SDXL.

SDXL tokenizes each prompt twice with one vocabulary. The two tokenizers differ
in their padding token: the end of text for CLIP-L, '!' for bigG. So '!' is a
special token of the second one, where it never merges with its neighbours.
"""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sdxl_jax.text import (
  added_tokens,
  chunking,
  clip_vocabulary,
  prompt_brackets,
)

PADS = clip_vocabulary.PADS


class PromptTruncatedWarning(UserWarning):
  """Part of a prompt is beyond the 77 tokens of the text encoders."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Tokenizes prompts when called; thread-safe and picklable."""

  rows: tuple  # transformers' CLIPTokenizer for CLIP-L, for bigG
  # Of each row, the tokens that stand for others, see added_tokens.
  expansions: tuple[added_tokens.Expansions, ...] = ({}, {})
  # Of each row, the embeddings that its text encoder has, or None.
  sizes: tuple[int | None, ...] = (None, None)

  def __call__(
    self, prompts: Sequence[str], prompts_2: Sequence[str] | None = None
  ) -> Int[np.ndarray, 'b 2 77']:
    """Returns token ids, int32: row 0 for CLIP-L and row 1 for bigG.

    `prompts_2` replaces `prompts` for bigG. Text beyond 77 tokens is cut, the
    end of text kept, and a PromptTruncatedWarning quotes it.
    """
    tokens, _ = self.chunks(prompts, prompts_2)
    return tokens[:, 0]

  def chunks(
    self,
    prompts: Sequence[str],
    prompts_2: Sequence[str] | None = None,
    *,
    weighted: bool = False,
    syntax: str = 'a1111',
    limit: int | None = 1,
  ) -> tuple[chunking.Tokens, chunking.Weights]:
    """Returns token ids, int32, and their weights, float32, in k chunks.

    All prompts have the k of the longest, with chunks of '' at the end. A
    PromptTruncatedWarning quotes text that is cut.

    Args:
      prompts: for CLIP-L.
      prompts_2: for bigG; by default the same.
      weighted: parses prompt weighting, see prompt_weighting.parse. A token has
        the weight of its text; start, end and padding have 1.
      limit: chunks of a prompt at most, see chunking.chunk_ends; text beyond
        them is cut. None: nothing is cut.

    Raises:
      TypeError: for a string in place of a list.
      ValueError: for different lengths, or from prompt_weighting.parse.
    """
    tokens, weights, cut = self.divide(
      prompts, prompts_2, syntax if weighted else None, limit
    )
    # Both rows may cut the same text: warn once.
    for text in dict.fromkeys(text for row in cut for text in row if text):
      length = limit * chunking.CONTENT + 2
      message = f'a prompt is longer than {length} tokens; cut: {text!r}'
      warnings.warn(message, PromptTruncatedWarning, stacklevel=3)
    return tokens, weights

  def captions(
    self, captions: Sequence[str], count: int = 1
  ) -> tuple[Int[np.ndarray, 'b *count 2 77'], list[str]]:
    """Tokenizes captions for training, without a warning.

    Args:
      captions: for both rows.
      count: chunks of each caption. Those that a caption does not need are
        chunks of ''; text that they do not hold is cut.

    Returns:
      Token ids, int32, of the shape chunking.shape(count), and of each caption
      the text that is cut from it, '' if nothing is.
    """
    tokens, weights, cut = self.divide(captions, limit=count)
    tokens, _ = chunking.lengthen(tokens, weights, self.empty, count)
    # One row may hold more of the text than the other.
    longest = [max(texts, key=len) for texts in zip(*cut)]
    return tokens.reshape(len(captions), *chunking.shape(count)), longest

  def divide(
    self,
    prompts: Sequence[str],
    prompts_2: Sequence[str] | None = None,
    syntax: str | None = None,
    limit: int | None = 1,
  ) -> tuple[chunking.Tokens, chunking.Weights, list[list[str]]]:
    """Tokenizes like `chunks`, but returns what is cut in place of a warning.

    Returns:
      (tokens, weights, cut): cut is, of each row, the text that is cut from
      each prompt, '' if nothing is.
    """
    # A string is a sequence of strings too, so it is refused.
    prompts_2 = prompts if prompts_2 is None else prompts_2
    if isinstance(prompts, str) or isinstance(prompts_2, str):
      raise TypeError(f'prompts must be a list of strings, not {prompts!r}')
    if len(prompts) != len(prompts_2):
      raise ValueError(f'{len(prompts)} prompts but {len(prompts_2)} prompts_2')
    # Each row by its own tokenizer.
    divided, cut = [], []
    for row, texts, table in zip(
      self.rows, (prompts, prompts_2), self.expansions
    ):
      row_chunks, row_cut = chunking.divide(row, texts, syntax, limit, table)
      divided.append(row_chunks)
      cut.append(row_cut)
    tokens, weights = chunking.stack(divided, self.empty)
    self.check_sizes(tokens)
    return tokens, weights, cut

  def check_sizes(self, tokens: Int[np.ndarray, '*b 2 77']) -> None:
    """Raises ValueError for a token that a text encoder has no embedding of."""
    for row, (tokenize, size) in enumerate(zip(self.rows, self.sizes)):
      largest = tokens[..., row, :].max(initial=0)
      if size is not None and largest >= size:
        token = tokenize.convert_ids_to_tokens(int(largest))
        raise ValueError(
          f'{list(PADS)[row]} has the token {token!r} with the id {largest}, '
          f'and its text encoder only {size} embeddings: the two are of '
          'different models, or the tokenizer was changed without the weights'
        )

  def with_words(
    self,
    words: Sequence[Mapping[str, int]],
    aliases: Sequence[Mapping[str, str | None]],
    rename: str = added_tokens.RENAME,
  ) -> tuple['Tokenizer', list[list[int]]]:
    """Returns this tokenizer with learned words, and the ids of their vectors.

    Args:
      words: of each row, {word: number of its vectors}.
      aliases: of each row, see added_tokens.add_words.
      rename: see added_tokens.add_words.

    Raises:
      ValueError: for a word that a row has already.
    """
    rows, expansions, sizes = map(
      list, (self.rows, self.expansions, self.sizes)
    )
    ids = [[] for _ in rows]
    for i, row in enumerate(self.rows):
      if words[i] or aliases[i]:
        rows[i], ids[i], expansions[i] = added_tokens.add_words(
          row, words[i], aliases[i], rename
        )
      sizes[i] = ids[i][-1] + 1 if ids[i] else sizes[i]
    fields = map(tuple, (rows, expansions, sizes))
    return Tokenizer(*fields), ids

  @property
  def embeddings(self) -> frozenset[str]:
    """Lowercase names that may follow 'embedding:' in a prompt."""
    mark = prompt_brackets.MARK
    return frozenset(
      token.removeprefix(mark).lower()
      for row in self.rows
      for token in row.added_tokens_encoder
      if token.startswith(mark)
    )

  @property
  def empty(self) -> chunking.Empty:
    """The tokens of '', int32."""
    tokens = np.empty((len(self.rows), chunking.LENGTH), np.int32)
    for ids, row in zip(tokens, self.rows):
      ids[:2] = row.bos_token_id, row.eos_token_id
      ids[2:] = row.pad_token_id
    return tokens

  def decode(self, tokens: Int[np.ndarray, 'b *k 2 77']) -> list[str]:
    """Returns the text of CLIP-L's tokens, of one or several chunks."""
    rows = np.asarray(tokens).reshape(len(tokens), -1, *self.empty.shape)
    texts = [
      [self.rows[0].decode(ids, skip_special_tokens=True) for ids in row[:, 0]]
      for row in rows
    ]
    return [' '.join(filter(None, chunks)) for chunks in texts]


def load(
  folder: str | pathlib.Path | None = None,
  added: Mapping[str, Sequence[dict[str, Any]]] | None = None,
  sizes: tuple[int | None, ...] = (None, None),
) -> Tokenizer:
  """Loads the Tokenizer of a diffusers folder, or the vendored CLIP vocabulary.

  The rows come from the folder's tokenizer/ and tokenizer_2/. If one is absent
  (a refiner has only tokenizer_2/, a workdir and a single file neither), the
  row is the vendored vocabulary, which is the same in every published SDXL.

  Args:
    folder: in the diffusers layout; or another path, or None.
    added: {'tokenizer' or 'tokenizer_2': tokens} that the vendored vocabulary
      gets in addition, see added_tokens.describe.
    sizes: embeddings of the text encoder of each row; None: not checked.

  Raises:
    FileNotFoundError: if the folder, or a file of a tokenizer, is missing.
  """
  if folder is not None and not pathlib.Path(folder).exists():
    raise FileNotFoundError(f'tokenizer folder {folder} not found')
  rows = tuple(load_row(folder, name, (added or {}).get(name)) for name in PADS)
  return Tokenizer(rows, tuple(map(added_tokens.expansions, rows)), sizes)


def load_row(
  folder: str | pathlib.Path | None,
  name: str,
  added: Sequence[dict[str, Any]] | None = None,
) -> Any:
  """Loads the CLIPTokenizer 'tokenizer' or 'tokenizer_2'; see `load`."""
  # Takes a second to import, so only on first use. The tokenizer does not need
  # PyTorch, and the advice to install it would mislead.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  import transformers

  if folder is None or not (pathlib.Path(folder) / name).is_dir():
    vocabulary, merges = clip_vocabulary.load()
    row = transformers.CLIPTokenizer(
      vocab=vocabulary,
      merges=merges,
      pad_token=PADS[name],
      model_max_length=chunking.LENGTH,
    )
    added_tokens.restore(row, added or ())
    return row
  path = pathlib.Path(folder) / name
  files = {p.name for p in path.iterdir()}
  missing = {'vocab.json', 'merges.txt'} - files
  if missing and 'tokenizer.json' not in files:
    raise FileNotFoundError(
      f'{path} lacks {", ".join(sorted(missing))}: re-download it, or remove '
      f'{path} to use the vocabulary that comes with sdxl_jax'
    )
  return transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)
