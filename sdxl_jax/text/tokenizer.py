"""Prompts to token ids, equal to transformers' CLIPTokenizer for SDXL.

SDXL tokenizes each prompt twice with one vocabulary. The two tokenizers differ
in their padding token: the end of text for CLIP-L, '!' for bigG. So '!' is a
special token of the second one, where it never merges with its neighbours.
"""

import dataclasses
import gzip
import json
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sdxl_jax.text import prompt_weighting

LENGTH = 77
CONTENT = LENGTH - 2  # without start and end
PADS = {'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'}
VOCABULARY = pathlib.Path(__file__).with_name('vocabulary')

Tokens = Int[np.ndarray, 'b k 2 77']
Weights = Float[np.ndarray, 'b k 2 77']
Empty = Int[np.ndarray, '2 77']


class PromptTruncatedWarning(UserWarning):
  """Part of a prompt is beyond the 77 tokens of the text encoders."""


class Chunk(NamedTuple):
  """Up to 75 tokens, without start, end and padding."""

  ids: list[int]
  weights: Float[np.ndarray, ' n']  # of each token


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Tokenizes prompts when called; thread-safe and picklable."""

  rows: tuple  # transformers' CLIPTokenizer for CLIP-L, for bigG

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
    long: bool = False,
  ) -> tuple[Tokens, Weights]:
    """Returns token ids, int32, and their weights, float32, in k chunks.

    Args:
      prompts: for CLIP-L.
      prompts_2: for bigG; by default the same.
      weighted: parses prompt weighting, see prompt_weighting.parse. A token has
        the weight of its text; start, end and padding have 1.
      long: cuts nothing. A prompt continues in chunks of up to 75 tokens, each
        with its own start, end and padding. A chunk ends where a word does, as
        CLIP divides words, unless a word is longer than a chunk. All prompts
        have the k of the longest, with chunks of '' at the end. Each row is
        divided alone, since bigG may have more tokens than CLIP-L: see '!'
        above.

    Raises:
      TypeError: for a string in place of a list.
      ValueError: for different lengths, or from prompt_weighting.parse.
    """
    # A string is a sequence of strings too, so it is refused.
    prompts_2 = prompts if prompts_2 is None else prompts_2
    if isinstance(prompts, str) or isinstance(prompts_2, str):
      raise TypeError(f'prompts must be a list of strings, not {prompts!r}')
    if len(prompts) != len(prompts_2):
      raise ValueError(f'{len(prompts)} prompts but {len(prompts_2)} prompts_2')
    # Each row by its own tokenizer.
    chunks, truncated = [], []
    for row, texts in zip(self.rows, (prompts, prompts_2)):
      row_chunks, row_truncated = encode(row, texts, weighted, long)
      chunks.append(row_chunks)
      truncated += row_truncated
    # Both rows may cut the same text: warn once.
    for text in dict.fromkeys(truncated):
      message = f'a prompt is longer than {LENGTH} tokens; cut: {text!r}'
      warnings.warn(message, PromptTruncatedWarning, stacklevel=3)
    return stack(chunks, self.empty)

  @property
  def empty(self) -> Empty:
    """The tokens of '', int32."""
    tokens = np.empty((len(self.rows), LENGTH), np.int32)
    for ids, row in zip(tokens, self.rows):
      ids[:2] = row.bos_token_id, row.eos_token_id
      ids[2:] = row.pad_token_id
    return tokens

  def decode(self, tokens: Int[np.ndarray, 'b 2 77']) -> list[str]:
    """Returns the text of CLIP-L's tokens."""
    return [
      self.rows[0].decode(ids, skip_special_tokens=True)
      for ids in np.asarray(tokens)[:, 0]
    ]


def load(folder: str | pathlib.Path | None = None) -> Tokenizer:
  """Loads the Tokenizer of a diffusers folder, or the vendored CLIP vocabulary.

  The rows come from the folder's tokenizer/ and tokenizer_2/. If one is absent
  (a refiner has only tokenizer_2/, a workdir and a single file neither), the
  row is the vendored vocabulary, which is the same in every published SDXL.

  Raises:
    FileNotFoundError: if the folder, or a file of a tokenizer, is missing.
  """
  if folder is not None and not pathlib.Path(folder).exists():
    raise FileNotFoundError(f'tokenizer folder {folder} not found')
  return Tokenizer(tuple(load_row(folder, name) for name in PADS))


def load_row(folder: str | pathlib.Path | None, name: str) -> Any:
  """Loads the CLIPTokenizer 'tokenizer' or 'tokenizer_2'."""
  # Takes a second to import, so only on first use. The tokenizer does not need
  # PyTorch, and the advice to install it would mislead.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  import transformers

  if folder is None or not (pathlib.Path(folder) / name).is_dir():
    vocabulary, merges = vendored_vocabulary()
    return transformers.CLIPTokenizer(
      vocab=vocabulary,
      merges=merges,
      pad_token=PADS[name],
      model_max_length=LENGTH,
    )
  path = pathlib.Path(folder) / name
  files = {p.name for p in path.iterdir()}
  missing = {'vocab.json', 'merges.txt'} - files
  if missing and 'tokenizer.json' not in files:
    raise FileNotFoundError(
      f'{path} lacks {", ".join(sorted(missing))}: re-download it, or remove '
      f'{path} to use the vocabulary that comes with sdxl_jax'
    )
  return transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)


def vendored_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Returns ({token: id}, merges) of CLIP.

  Tokens are bytes, byte pairs by rank, start and end. The file lists 262,144
  merges, of which CLIP uses the first 48,894.
  """
  text = gzip.open(VOCABULARY / 'bpe_simple_vocab_16e6.txt.gz').read().decode()
  merges = [tuple(line.split()) for line in text.split('\n')[1:48895]]
  # Ids: bytes, bytes that end a word, merges, start, end.
  symbols = byte_symbols()
  tokens = symbols + [s + '</w>' for s in symbols]
  tokens += [''.join(merge) for merge in merges]
  tokens += ['<|startoftext|>', '<|endoftext|>']
  return {token: i for i, token in enumerate(tokens)}, merges


def save(folder: str | pathlib.Path, name: str) -> None:
  """Writes the vendored vocabulary as a tokenizer folder of published SDXL.

  Args:
    folder: must not exist.
    name: 'tokenizer' or 'tokenizer_2'.
  """
  # The settings of both JSON files.
  vocabulary, merges = vendored_vocabulary()
  start, end = '<|startoftext|>', '<|endoftext|>'
  special = {
    'bos_token': start,
    'eos_token': end,
    'pad_token': PADS[name],
    'unk_token': end,
  }
  config = special | {
    'add_prefix_space': False,
    'model_max_length': LENGTH,
    'do_lower_case': True,
    'errors': 'replace',
    'clean_up_tokenization_spaces': True,
    'tokenizer_class': 'CLIPTokenizer',
  }
  # Merges by rank, then everything else as JSON.
  folder = pathlib.Path(folder)
  folder.mkdir()
  lines = ['#version: 0.2', *map(' '.join, merges)]
  (folder / 'merges.txt').write_text('\n'.join(lines) + '\n', 'utf-8')
  for file, content in {
    'vocab.json': vocabulary,
    'special_tokens_map.json': special,
    'tokenizer_config.json': config,
  }.items():
    text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    (folder / file).write_text(text, 'utf-8')


def byte_symbols() -> list[str]:
  """Returns GPT-2's printable character of each byte, printable bytes first."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = range(256, 512 - len(printable))
  return [chr(code) for code in (*printable, *others)]


def encode(
  row: Any, prompts: Sequence[str], weighted: bool, long: bool
) -> tuple[list[list[Chunk]], list[str]]:
  """Tokenizes prompts by one CLIPTokenizer.

  Returns:
    (chunks, truncated): the chunks of each prompt, and the texts that were cut.
  """
  # Characters and their weights.
  if weighted:
    texts, weights = zip(*map(prompt_weighting.parse, prompts))
  else:
    texts, weights = prompts, [np.ones(len(prompt)) for prompt in prompts]
  # Padding and cutting are done here, because the tokenizer would set fields of
  # its own for them, which is not thread-safe.
  encoded = row(list(texts), return_offsets_mapping=True, verbose=False)
  chunks, truncated = [], []
  for i, text in enumerate(texts):
    ids = encoded['input_ids'][i][1:-1]
    begins = [begin for begin, _ in encoded['offset_mapping'][i][1:-1]]
    ends = [min(len(ids), CONTENT)]
    if len(ids) > CONTENT and long:
      ends = chunk_ends(encoded.word_ids(i)[1:-1])
    elif len(ids) > CONTENT:
      truncated.append(text[begins[CONTENT] :])
    spans = [slice(*span) for span in zip([0, *ends], ends)]
    chunks.append([Chunk(ids[s], weights[i][begins[s]]) for s in spans])
  return chunks, truncated


def chunk_ends(words: Sequence[int | None]) -> list[int]:
  """Returns where chunks end, given the word index of each token."""
  count, ends = len(words), []
  word_ends = [i for i in range(1, count) if words[i] != words[i - 1]] + [count]
  # Each chunk takes as many whole words as fit.
  begin = 0
  while begin < count:
    limit = begin + CONTENT
    fitting = [end for end in word_ends if begin < end <= limit]
    begin = max(fitting, default=limit)
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
  """Counts the chunks of each prompt; '' has one."""
  return np.maximum((tokens != empty).any((2, 3)).sum(1), 1)


def lengthen(
  tokens: Tokens, weights: Weights, empty: Empty, count: int
) -> tuple[Int[np.ndarray, 'b {count} 2 77'], Float[np.ndarray, 'b _ 2 77']]:
  """Appends chunks of '' up to `count` of them."""
  b, k = tokens.shape[:2]
  more = np.tile(empty, (b, count - k, 1, 1))
  ones = np.ones(more.shape, np.float32)
  return np.concatenate([tokens, more], 1), np.concatenate([weights, ones], 1)
