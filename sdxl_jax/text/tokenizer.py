"""Prompts > token ids, as transformers' CLIPTokenizer gives them for SDXL.

SDXL reads each prompt with two tokenizers of one vocabulary, which differ in
what they pad with: CLIP-L with the end of text, bigG with '!'. So '!' is a
special token to the second, and no '!' ever merges with its neighbours there.
"""

import dataclasses
import gzip
import json
import os
import pathlib
import warnings

import numpy as np

from sdxl_jax.text import prompt_weighting

LENGTH = 77
CONTENT = LENGTH - 2  # without start and end
PADS = {'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'}
VOCABULARY = pathlib.Path(__file__).with_name('vocabulary')


class PromptTruncatedWarning(UserWarning):
  """Part of a prompt lies beyond the 77 tokens that the towers read."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Call it with prompts; it may be shared by threads, and pickled."""

  rows: tuple  # transformers' CLIPTokenizer for CLIP-L, for bigG

  def __call__(self, prompts, prompts_2=None):
    """Token ids, int32 [b, 2, 77]: row 0 for CLIP-L and row 1 for bigG.

    Where `prompts_2` is given, bigG reads it instead of `prompts`. Text beyond
    77 tokens is cut, the end of text kept, and a PromptCut warning quotes it.
    """
    tokens, _ = self.chunks(prompts, prompts_2)
    return tokens[:, 0]

  def chunks(self, prompts, prompts_2=None, *, weighted=False, long=False):
    """Token ids, int32 [b, k, 2, 77], and their weights, float32 [b, k, 2, 77].

    weighted: the prompts bear the marks of emphasis.parse. A token has the
      weight of its text; start, end and padding have 1.
    long: nothing is cut. A prompt goes on in chunks of up to 75 tokens, each
      with its own start, end and padding. A chunk ends where a word does, as
      CLIP divides words, unless one is longer than a chunk. All prompts have
      the k of the longest, with chunks of '' at the end. Each row is divided
      by itself, as bigG may read more tokens than CLIP-L: see '!' above.
    """
    prompts_2 = prompts if prompts_2 is None else prompts_2
    if isinstance(prompts, str) or isinstance(prompts_2, str):
      raise TypeError(f'prompts must be a list of strings, not {prompts!r}')
    if len(prompts) != len(prompts_2):
      raise ValueError(f'{len(prompts)} prompts but {len(prompts_2)} prompts_2')
    texts = prompts, prompts_2
    found, cut = zip(
      *(encode(r, t, weighted, long) for r, t in zip(self.rows, texts))
    )
    for text in dict.fromkeys(cut[0] + cut[1]):
      message = f'a prompt is longer than {LENGTH} tokens; cut: {text!r}'
      warnings.warn(message, PromptTruncatedWarning, stacklevel=3)
    return stack(found, self.empty)

  @property
  def empty(self):
    """The tokens of '', int32 [2, 77]."""
    tokens = np.empty((len(self.rows), LENGTH), np.int32)
    for ids, row in zip(tokens, self.rows):
      ids[:2] = row.bos_token_id, row.eos_token_id
      ids[2:] = row.pad_token_id
    return tokens

  def decode(self, tokens):
    """What CLIP-L reads of token ids int32 [b, 2, 77], as a list of strings."""
    read = lambda row: self.rows[0].decode(row, skip_special_tokens=True)
    return [read(row) for row in np.asarray(tokens)[:, 0]]


def load(folder=None):
  """The Tokenizer of a diffusers folder, or of the vendored CLIP vocabulary.

  Each row comes from the folder's tokenizer/ and tokenizer_2/. Where one is
  absent (the refiner brings only tokenizer_2/, a workdir and a single file
  neither), the row is the vendored vocabulary, which is the same in every
  published SDXL.
  """
  if folder is not None and not pathlib.Path(folder).exists():
    raise FileNotFoundError(f'{folder} is not there')
  return Tokenizer(tuple(load_row(folder, name) for name in PADS))


def load_row(folder, name):
  # A second to import, so only on first use; it has no need of PyTorch, and
  # the advice to install it would only mislead.
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
  found = {p.name for p in path.iterdir()}
  missing = {'vocab.json', 'merges.txt'} - found
  if missing and 'tokenizer.json' not in found:
    raise FileNotFoundError(
      f'{path} lacks {", ".join(sorted(missing))}: copy it from the model, or '
      f'remove {path} to use the vocabulary that comes with sdxl_jax'
    )
  return transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)


def vendored_vocabulary():
  """({token: id}, merges) of CLIP: bytes, byte pairs by rank, start and end.

  The file lists 262,144 merges of which CLIP uses the first 48,894.
  """
  text = gzip.open(VOCABULARY / 'bpe_simple_vocab_16e6.txt.gz').read().decode()
  merges = [tuple(line.split()) for line in text.split('\n')[1:48895]]
  symbols = byte_symbols()
  tokens = symbols + [s + '</w>' for s in symbols]
  tokens += [''.join(merge) for merge in merges]
  tokens += ['<|startoftext|>', '<|endoftext|>']
  return {token: i for i, token in enumerate(tokens)}, merges


def save(folder, name):
  """Writes the vendored vocabulary as a folder, as SDXL is published with it.

  Args:
    folder: which is made.
    name: 'tokenizer' or 'tokenizer_2'.
  """
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


def byte_symbols():
  """A printable character for each byte, as GPT-2: printable bytes first."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = range(256, 512 - len(printable))
  return [chr(code) for code in (*printable, *others)]


def encode(row, prompts, weighted, long):
  """([[(ids, weights) of each chunk] of each prompt], the texts cut) of a row.

  Ids are without start, end and padding.
  """
  plain = lambda prompt: (prompt, np.ones(len(prompt)))
  texts, weights = zip(
    *map(prompt_weighting.parse if weighted else plain, prompts)
  )
  # Padding and cutting here leaves the tokenizer as it is: its own way sets
  # fields, which threads may not do at once.
  encoded = row(list(texts), return_offsets_mapping=True, verbose=False)
  found, cut = [], []
  for i, text in enumerate(texts):
    ids = encoded['input_ids'][i][1:-1]
    begins = [begin for begin, _ in encoded['offset_mapping'][i][1:-1]]
    ends = [min(len(ids), CONTENT)]
    if len(ids) > CONTENT and long:
      ends = chunk_ends(encoded.word_ids(i)[1:-1])
    elif len(ids) > CONTENT:
      cut.append(text[begins[CONTENT] :])
    spans = [slice(*span) for span in zip([0, *ends], ends)]
    found.append([(ids[s], weights[i][begins[s]]) for s in spans])
  return found, cut


def chunk_ends(words):
  """Where chunks end, given which word each token is of."""
  count, found = len(words), [0]
  ends = [i for i in range(1, count) if words[i] != words[i - 1]] + [count]
  while found[-1] < count:
    limit = found[-1] + CONTENT
    whole = [end for end in ends if found[-1] < end <= limit]
    found.append(max(whole, default=limit))
  return found[1:]


def stack(rows, empty):
  """What `encode` found of each row > ids and weights [b, k, 2, 77]."""
  count = max(len(chunks) for found in rows for chunks in found)
  tokens = np.tile(empty, (len(rows[0]), count, 1, 1))
  weights = np.ones(tokens.shape, np.float32)
  for row, found in enumerate(rows):
    for i, chunks in enumerate(found):
      for j, (ids, ids_weights) in enumerate(chunks):
        end = 1 + len(ids)
        tokens[i, j, row, 1:end] = ids
        tokens[i, j, row, end] = empty[row, 1]
        weights[i, j, row, 1:end] = ids_weights
  return tokens, weights


def count(tokens, empty):
  """How many chunks [b, k, 2, 77] each prompt takes, [b]; '' takes one."""
  return np.maximum((tokens != empty).any((2, 3)).sum(1), 1)


def lengthen(tokens, weights, empty, count):
  """Chunks of '' after the others, so that there are `count`."""
  b, k = tokens.shape[:2]
  more = np.tile(empty, (b, count - k, 1, 1))
  ones = np.ones(more.shape, np.float32)
  return np.concatenate([tokens, more], 1), np.concatenate([weights, ones], 1)
