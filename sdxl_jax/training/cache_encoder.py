"""Runs the frozen nets whose results a cache holds."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdxl_jax.checkpoints import loading, params_digest
from sdxl_jax.data import cut_captions, images
from sdxl_jax.distributed import sharding
from sdxl_jax.text import chunking, tokenizer
from sdxl_jax.training import run_setup


class Encoder:
  """Encodes images to moments and captions to text, in batches of one shape.

  The weights are those of config.init_from. With several devices, each has
  `batch_size` rows of a batch.
  """

  def __init__(self, setup: run_setup.LocalSetup, batch_size: int):
    config, model, mesh = setup.config, setup.model, setup.mesh
    names = [name for name in model.configs if name != 'unet']
    self.params = loading.load_start(config, model, names, mesh)
    self.tokenize = run_setup.load_tokenizer(config)
    length = config.max_token_length
    self.text_chunks = chunking.count_for(length)
    self.cut_captions = cut_captions.CutCaptions(length)
    self.batch_size = batch_size * mesh.size
    self.sharding = sharding.batch_sharding(mesh)
    self.encode_images = jax.jit(model.encode)
    self.encode_tokens = model.text.encode

  def identity(self) -> dict[str, str]:
    """Returns {name: hash} of the tokenizer and of each net's parameters."""
    names = sorted(self.params)
    nets = {name: params_digest.digest(self.params[name]) for name in names}
    return nets | {'tokenizer': vocabulary_digest(self.tokenize)}

  def moments(self, crops: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields float32 [h/8, w/8, 8] of each uint8 [h, w, 3]."""
    return self.batched(self.encode_images, map(images.to_float, crops))

  def text(
    self, captions: Sequence[str]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields context [77 k, 2048] and pooled [1280] of each caption."""
    tokens = []
    if captions:
      tokens, cut = self.tokenize.captions(captions, self.text_chunks)
      self.cut_captions.add(cut)
    return self.batched(self.encode_tokens, iter(np.asarray(tokens, np.int32)))

  def batched(self, encode: Callable, rows: Iterator[np.ndarray]) -> Iterator:
    """Yields the result of each row; the next batch runs during the transfer.

    Args:
      encode: (params, batch) -> tree of arrays.
      rows: of one shape; the last batch is padded with copies of its last row.
    """
    pending = None
    while batch := list(itertools.islice(rows, self.batch_size)):
      padded = np.stack(batch + batch[-1:] * (self.batch_size - len(batch)))
      result = encode(self.params, jax.device_put(padded, self.sharding))
      if pending:
        yield from fetch_rows(*pending)
      pending = result, len(batch)
    if pending:
      yield from fetch_rows(*pending)


def fetch_rows(result: Any, count: int) -> Iterator[Any]:
  """Yields the first rows of a batch from the devices, one by one."""
  result = jax.tree.map(np.asarray, result)
  for i in range(count):
    yield jax.tree.map(lambda array, i=i: array[i], result)


def vocabulary_digest(tokenize: tokenizer.Tokenizer) -> str:
  """Hashes vocabulary and padding; CLIP's merges follow from the vocabulary."""
  rows = [
    [sorted(row.get_vocab().items()), row.pad_token_id] for row in tokenize.rows
  ]
  return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()
