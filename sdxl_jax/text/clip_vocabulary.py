"""The vocabulary of CLIP, which comes with this package."""

import gzip
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from sdxl_jax.text import chunking

PADS = {'tokenizer': '<|endoftext|>', 'tokenizer_2': '!'}  # of published SDXL
FILE = pathlib.Path(__file__).parent / 'vocabulary/bpe_simple_vocab_16e6.txt.gz'


def load() -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Returns ({token: id}, merges) of CLIP.

  Tokens are bytes, byte pairs by rank, start and end. The file lists 262,144
  merges, of which CLIP uses the first 48,894.
  """
  text = gzip.open(FILE).read().decode()
  merges = [tuple(line.split()) for line in text.split('\n')[1:48895]]
  # Ids: bytes, bytes that end a word, merges, start, end.
  symbols = byte_symbols()
  tokens = symbols + [s + '</w>' for s in symbols]
  tokens += [''.join(merge) for merge in merges]
  tokens += ['<|startoftext|>', '<|endoftext|>']
  return {token: i for i, token in enumerate(tokens)}, merges


def save(
  folder: str | pathlib.Path,
  name: str,
  added: Sequence[dict[str, Any]] = (),
) -> None:
  """Writes the vocabulary as a tokenizer folder of published SDXL.

  Args:
    folder: must not exist.
    name: 'tokenizer' or 'tokenizer_2'.
    added: further tokens, see added_tokens.describe.
  """
  # The settings of both JSON files.
  vocabulary, merges = load()
  start, end = '<|startoftext|>', '<|endoftext|>'
  special = {
    'bos_token': start,
    'eos_token': end,
    'pad_token': PADS[name],
    'unk_token': end,
  }
  config = special | {
    'add_prefix_space': False,
    'model_max_length': chunking.LENGTH,
    'do_lower_case': True,
    'errors': 'replace',
    'clean_up_tokenization_spaces': True,
    'tokenizer_class': 'CLIPTokenizer',
  }
  files = {
    'vocab.json': vocabulary,
    'special_tokens_map.json': special,
    'tokenizer_config.json': config,
  }
  if added:
    ids = {token['content']: token['id'] for token in added}
    config['added_tokens_decoder'] = {
      str(token['id']): {n: x for n, x in token.items() if n != 'id'}
      for token in added
    }
    files['added_tokens.json'] = ids
  # Merges by rank, then everything else as JSON.
  folder = pathlib.Path(folder)
  folder.mkdir()
  lines = ['#version: 0.2', *map(' '.join, merges)]
  (folder / 'merges.txt').write_text('\n'.join(lines) + '\n', 'utf-8')
  for file, content in files.items():
    text = json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    (folder / file).write_text(text, 'utf-8')


def byte_symbols() -> list[str]:
  """Returns GPT-2's printable character of each byte, printable bytes first."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = range(256, 512 - len(printable))
  return [chr(code) for code in (*printable, *others)]
