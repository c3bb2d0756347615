"""The vocabulary of CLIP, which comes with this package."""

import gzip
import pathlib

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


def byte_symbols() -> list[str]:
  """Returns GPT-2's printable character of each byte, printable bytes first."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = range(256, 512 - len(printable))
  return [chr(code) for code in (*printable, *others)]
