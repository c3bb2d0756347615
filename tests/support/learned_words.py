"""Folders whose tokenizers have added tokens, and files of learned words."""

import json
import shutil

import numpy as np
import safetensors.numpy

from sdxl_jax.text import clip_vocabulary
from tests.support import golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
REFINER = golden_sets.SETS[0] / 'tiny' / 'refiner'
WIDTHS = {'text_encoder': 12, 'text_encoder_2': 16}  # of the tiny base
NAMES = ('clip_l', 'clip_g')
SETTINGS = {
  'single_word': False,
  'lstrip': False,
  'rstrip': False,
  'normalized': True,
  'special': False,
}


def vectors(count, seed=0):
  """{'clip_l': [count, 12], 'clip_g': [count, 16]} of the tiny base."""
  rng = np.random.default_rng(seed)
  return {
    name: np.float32(rng.normal(size=(count, width)) / 20)
    for name, width in zip(NAMES, WIDTHS.values())
  }


def save(path, tensors):
  """Writes a safetensors file and returns its path as a string."""
  safetensors.numpy.save_file(tensors, path)
  return str(path)


def describe(words):
  """The added tokens of some words, as added_tokens.describe has them."""
  return [
    {'id': 49408 + i, 'content': word} | SETTINGS
    for i, word in enumerate(words)
  ]


def folder(path, words, eos_token_id=2):
  """Copies the tiny base, with words in tokenizers and text encoders.

  The vectors of the words are those of `vectors`.
  """
  shutil.copytree(BASE, path)
  rows = vectors(len(words))
  for name, encoder, tokenizer in zip(
    NAMES, WIDTHS, ('tokenizer', 'tokenizer_2')
  ):
    shutil.rmtree(path / tokenizer)
    clip_vocabulary.save(path / tokenizer, tokenizer, describe(words))
    file = path / encoder / 'model.safetensors'
    tensors = safetensors.numpy.load_file(file)
    (table,) = [n for n in tensors if n.endswith('token_embedding.weight')]
    tensors[table] = np.concatenate([tensors[table], rows[name]])
    file.chmod(0o644)
    safetensors.numpy.save_file(tensors, file, {'format': 'pt'})
    config = path / encoder / 'config.json'
    config.chmod(0o644)
    fields = json.loads(config.read_text())
    fields['vocab_size'] = len(tensors[table])
    fields['eos_token_id'] = eos_token_id
    config.write_text(json.dumps(fields))
  return path
