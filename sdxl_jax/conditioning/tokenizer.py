"""Prompts > token ids, as transformers' CLIPTokenizer gives them for SDXL.

SDXL reads each prompt with two tokenizers of one vocabulary, which differ in
what they pad with: CLIP-L with the end of text, bigG with '!'. So '!' is a
special token to the second, and no '!' ever merges with its neighbours there.
"""

import dataclasses
import gzip
import os
import pathlib
import warnings

import numpy as np

LENGTH = 77
PADS = {'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'}
VOCABULARY = pathlib.Path(__file__).with_name('vocabulary')


class PromptCut(UserWarning):
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
    prompts_2 = prompts if prompts_2 is None else prompts_2
    if isinstance(prompts, str) or isinstance(prompts_2, str):
      raise TypeError(f'prompts must be a list of strings, not {prompts!r}')
    if len(prompts) != len(prompts_2):
      raise ValueError(f'{len(prompts)} prompts but {len(prompts_2)} prompts_2')
    texts = prompts, prompts_2
    ids, cut = zip(*(encode(r, t) for r, t in zip(self.rows, texts)))
    for text in dict.fromkeys(cut[0] + cut[1]):
      message = f'a prompt is longer than {LENGTH} tokens; cut: {text!r}'
      warnings.warn(message, PromptCut, stacklevel=2)
    return np.stack(ids, axis=1)

  def decode(self, tokens):
    """What CLIP-L reads of token ids int32 [b, 2, 77], as a list of strings."""
    read = lambda row: self.rows[0].decode(row, skip_special_tokens=True)
    return [read(row) for row in np.asarray(tokens)[:, 0]]


def load(folder=None):
  """The Tokenizer of a diffusers folder, or of the vendored CLIP vocabulary.

  Each row comes from the folder's tokenizer/ and tokenizer_2/. Where one is
  absent (the refiner brings only tokenizer_2/, a workdir neither), the row is
  the vendored vocabulary, which is the same in every published SDXL.
  """
  if folder is not None and not pathlib.Path(folder).is_dir():
    raise FileNotFoundError(f'{folder} is not a folder of weights')
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


def byte_symbols():
  """A printable character for each byte, as GPT-2: printable bytes first."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = range(256, 512 - len(printable))
  return [chr(code) for code in (*printable, *others)]


def encode(row, prompts):
  """(ids [b, 77], the texts cut) of one tokenizer."""
  # Padding and cutting here leaves the tokenizer as it is: its own way sets
  # fields, which threads may not do at once.
  encoded = row(prompts, return_offsets_mapping=True, verbose=False)
  ids = np.full((len(prompts), LENGTH), row.pad_token_id, np.int32)
  cut = []
  for i, tokens in enumerate(encoded['input_ids']):
    if len(tokens) > LENGTH:
      begin, _ = encoded['offset_mapping'][i][LENGTH - 1]
      cut.append(prompts[i][begin:])
      tokens = tokens[: LENGTH - 1] + tokens[-1:]
    ids[i, : len(tokens)] = tokens
  return ids, cut
