"""Writes a word that a run learned, or of a file, as a file of embeddings."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sdxl_jax.checkpoints import (
  conversion,
  export,
  run_words,
  source_configs,
)
from sdxl_jax.models import clip, from_config
from sdxl_jax.weights import (
  embedding_writer,
  formats,
  output_path,
  textual_inversion,
)

Source = str | pathlib.Path
WIDTHS = {
  'text_encoder': clip.VIT_L.hidden_size,
  'text_encoder_2': clip.VIT_BIGG.hidden_size,
}


def open_words(
  path: Source, base: Source | None = None, average: str = 'ema'
) -> list[textual_inversion.Word]:
  """Loads the words of a file, of a folder of diffusers, or of a run.

  Args:
    path: of it.
    base: source of the model that a file is for; None: SDXL.
    average: which vectors of a run, see run_params.restore.

  Raises:
    ValueError: if there is none.
  """
  try:
    textual_inversion.find(textual_inversion.parse(str(path))[1])
  except FileNotFoundError:
    words = run_words.load(path, average=average)
  else:
    words = textual_inversion.load([str(path)], widths_of(base))
  if not words:
    raise ValueError(
      f'{path} learned no words, which a file of embeddings holds: pass the '
      "workdir of a run with 'words' in config.trained"
    )
  return words


def widths_of(base: Source | None) -> dict[str, int]:
  """Returns {text encoder: width of its embeddings} of a model."""
  if not base:
    return WIDTHS
  if formats.is_published(base):
    model = export.open_source(base)
    configs = {n: model.net(n).config() for n in WIDTHS if n in model.loaders}
  else:
    configs = from_config.make_model(source_configs.saved_config(base)).configs
  return {n: configs[n].hidden_size for n in WIDTHS if n in configs}


def choose(
  words: Sequence[textual_inversion.Word], name: str | None, path: Source
) -> textual_inversion.Word:
  """Chooses the word of a name; None: the only one.

  Raises:
    ValueError: if there is no such word, or there are several and no name.
  """
  names = ', '.join(repr(word.name) for word in words)
  if name is None and len(words) > 1:
    raise ValueError(
      f'{path} has the words {names}, and a file holds one: choose it by --word'
    )
  for word in words:
    if name in (None, word.name):
      return word
  raise ValueError(f'{path} has no word {name!r}, but {names}: choose another')


def convert(
  source: conversion.Source,
  target: conversion.Target,
  dry_run: bool = False,
  say: Callable[[str], Any] = print,
) -> None:
  """Converts a file of textual inversion, or a word that a workdir learned.

  Args:
    source: to read.
    target: to write; its key_format is one of embedding_writer.LAYOUTS.
    dry_run: whether to write nothing.
    say: prints a line.

  Raises:
    ValueError: if there is no such word, or an option is of models.
    OSError: if a path cannot be read or written.
  """
  path, layout = target.path, target.key_format
  conversion.refuse_of_models(source, target, 'a learned word')
  embedding_writer.check_layout(layout)
  output_path.check_replaceable(path, layout == 'diffusers', target.overwrite)
  words = open_words(source.path, source.base, source.average)
  word = choose(words, target.word, source.path)
  counts = ', '.join(f'{len(x)} for {n}' for n, x in word.vectors.items())
  say(f'{word.path}: the word {word.name!r}, vectors: {counts}')
  say(f'to {path}: in the layout of {layout}, {target.dtype or "float32"}')
  if dry_run:
    return
  metadata = {
    'modelspec.sai_model_spec': '1.0.0',
    'modelspec.architecture': 'stable-diffusion-xl-v1-base/textual-inversion',
    'modelspec.trigger_phrase': word.name,
    'modelspec.title': target.title or pathlib.Path(path).stem,
  }
  embedding_writer.save(
    path, word, layout, target.dtype, metadata, target.overwrite
  )
  say(f'wrote {path}')
