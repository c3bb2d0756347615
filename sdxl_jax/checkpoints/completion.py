"""Completes a model before it is written: tokenizers, and LoRAs to merge."""

import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Sequence

from sdxl_jax.text import added_tokens, clip_vocabulary, tokenizer
from sdxl_jax.weights import pretrained
from sdxl_jax.weights.lora import lora_file, merge


def with_tokenizers(model: pretrained.Model) -> pretrained.Model:
  """Adds the vocabulary of this package where the model has no tokenizer."""
  tokenizers = {}
  for component, name in pretrained.TOKENIZERS.items():
    if component in model.loaders:
      added = model.added_tokens.get(name, ())
      ours = functools.partial(clip_vocabulary.save, name=name, added=added)
      tokenizers[name] = model.tokenizers.get(name, ours)
  return dataclasses.replace(model, tokenizers=tokenizers)


def with_added_tokens(model: pretrained.Model) -> pretrained.Model:
  """Adds the tokens that each tokenizer adds to CLIP's vocabulary.

  A single file, which has no tokenizer, keeps them in its metadata.

  Args:
    model: with all its tokenizers.
  """
  known, _ = clip_vocabulary.load()
  tokens = {}
  for component, name in pretrained.TOKENIZERS.items():
    if component not in model.loaders:
      continue
    # A tokenizer without embeddings of its own is CLIP's.
    if model.net(component).config().vocab_size > len(known):
      with tempfile.TemporaryDirectory() as folder:
        model.tokenizers[name](pathlib.Path(folder) / name)
        row = tokenizer.load_row(folder, name)
      tokens[name] = added_tokens.describe(row, known)
  added = {name: words for name, words in tokens.items() if words}
  return dataclasses.replace(model, added_tokens=added)


def with_loras(
  model: pretrained.Model,
  specs: Sequence[str],
  skip_unsupported: bool = False,
) -> pretrained.Model:
  """Merges LoRA files, each as 'FILE' or 'FILE:WEIGHT', into a model.

  Args:
    model: to merge them into.
    specs: of the files.
    skip_unsupported: whether to leave out tensors that cannot be applied.
  """
  if not specs:
    return model
  # Files are loaded now; their factors are added as tensors are read.
  nets = {name: model.net(name) for name in model.index.components}
  shapes = {n: net.shapes(net.config()) for n, net in nets.items()}
  loras = lora_file.load_all(shapes, specs, skip_unsupported)
  loaders = {
    name: functools.partial(merge.merge_published, net, loras)
    for name, net in nets.items()
  }
  return dataclasses.replace(
    model,
    loaders=model.loaders | loaders,
    notes=model.notes + lora_file.notes(specs, loras),
  )
