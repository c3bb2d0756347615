"""Reads words learned by textual inversion (Gal et al. 2022) from files.

A file has vectors of the text encoders' token embeddings, [n, width]. Layouts:

  clip_l, clip_g            SDXL's two text encoders (ComfyUI, A1111, kohya)
  text_encoders_0, _1       the same in older scripts of pivotal tuning
  string_to_param: {'*': }  A1111, with the word as 'name'; of one text encoder
  emb_params                ComfyUI, A1111; of one text encoder
  {word: vectors}           diffusers' learned_embeds; of one text encoder
  bundle_emb.WORD.*         any of these within a LoRA file (kohya, OneTrainer)

Vectors of one text encoder belong to that of their width. Two files may have
the same word for one text encoder each, as diffusers writes them for SDXL.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sdxl_jax.weights import (
  checked_cast,
  companions,
  foreign_files,
  safetensors_file,
  torch_pickle,
  word_vectors,
)

Tree = dict[str, Any]  # what a file holds
# (word or None, {name of a tensor: vectors}).
Entry = tuple[str | None, dict[str, safetensors_file.LazyTensor]]
BUNDLE = re.compile(r'bundle_emb\.(.+?)\.(?:string_to_param\.)?([^.]+)')
FLAT = 'string_to_param.'  # of A1111's files as safetensors
# The files in a folder that diffusers wrote.
FILES = ('learned_embeds', 'learned_embeds_2')
SUFFIXES = ('.safetensors', '.bin')
# The word in the metadata of a file that this program wrote.
WORD = 'token_string'


@dataclasses.dataclass(frozen=True)
class Word:
  """A learned word.

  Attributes:
    name: by which prompts use it.
    vectors: {text encoder: float32 [n, width]}.
    aliases: further names, of the file that it comes from.
    path: of that file.
  """

  name: str
  vectors: dict[str, np.ndarray]
  aliases: tuple[str, ...]
  path: pathlib.Path


def load(specs: Sequence[str], widths: Mapping[str, int]) -> list[Word]:
  """Loads learned words.

  Args:
    specs: each 'FILE' or 'NAME=FILE'; FILE may be a folder that diffusers
      wrote. NAME replaces the word that the file has, or its own name.
    widths: {text encoder: width of its embeddings} of the model, in order.

  Returns:
    Words in the order of the files. A refiner, which has one text encoder,
    gets no vectors of the other.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for files without vectors, of another width or not finite; for
      two files with the same word.
  """
  words = {}
  for spec in specs:
    name, path = parse(spec)
    for file in find(path):
      for word in read(file, name, widths):
        if word.name in words:
          word = join(words[word.name], word)
        words[word.name] = word
  return list(words.values())


def parse(spec: str) -> tuple[str | None, str]:
  """Parses 'FILE' or 'NAME=FILE' into (name or None, file)."""
  name, equals, path = spec.partition('=')
  if not equals or pathlib.Path(spec).exists():
    return None, spec
  return name.strip(), path


def find(path: str | pathlib.Path) -> list[pathlib.Path]:
  """Returns the file at a path, or those in a folder that diffusers wrote.

  Raises:
    FileNotFoundError: if there is none.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return [path]
  files = []
  for stem in FILES:
    candidates = [path / f'{stem}{suffix}' for suffix in SUFFIXES]
    files += [file for file in candidates if file.is_file()][:1]
  if not files:
    raise FileNotFoundError(
      f'embedding {path}: no such file, nor a folder with {FILES[0]}'
      f'{" or ".join(SUFFIXES)}'
    )
  return files


def read(
  path: pathlib.Path, name: str | None, widths: Mapping[str, int]
) -> list[Word]:
  """Reads the words of one file; see `load`."""
  tree, stored = open_tree(path)
  try:
    entries = list(split(tree, widths))
    if name is not None and len(entries) > 1:
      words = companions.format_list([str(word) for word, _ in entries])
      raise ValueError(
        f'it has {len(entries)} words ({words}), and a name was passed for '
        'one: pass it without NAME='
      )
    words = []
    for own, tensors in entries:
      aliases = ()
      if name is None and len(entries) == 1:
        aliases = (path.stem, path.name)
      word = name if name is not None else own or stored or path.stem
      vectors = word_vectors.assign(tensors, widths)
      words.append(Word(word, vectors, aliases, path))
  except checked_cast.StoredError:
    raise  # its message names the file
  except ValueError as error:
    raise ValueError(f'embedding {path}: {error}') from None
  return words


def open_tree(
  path: pathlib.Path,
) -> tuple[Tree | safetensors_file.LazyTensor, str | None]:
  """Opens the tensors of a safetensors file, or the tree of a pickle.

  The file may be another one, and large: what is no word is not read.

  Returns:
    The tree, and the word that the metadata have, if any.
  """
  if foreign_files.is_torch_pickle(path):
    return torch_pickle.open_tree(path), None
  file = safetensors_file.load(path)
  return file.tensors, file.metadata.get(WORD)


def split(
  tree: Tree | safetensors_file.LazyTensor, widths: Mapping[str, int]
) -> Iterator[Entry]:
  """Yields each word of a file: (word or None, {name of a tensor: tensor}).

  Raises:
    ValueError: for a file that holds anything else.
  """
  if isinstance(tree, safetensors_file.LazyTensor):
    yield None, {'*': tree}
    return
  if not isinstance(tree, dict) or not tree:
    raise ValueError('it holds no tensors')
  bundles = {}
  for name, tensor in tree.items():
    if match := BUNDLE.fullmatch(str(name)):
      bundles.setdefault(match[1], {})[match[2]] = tensor
  if bundles:
    yield from bundles.items()
  elif isinstance(tree.get('string_to_param'), dict):
    word = tree.get('name')
    has_word = isinstance(word, str) and word.strip() not in ('', '*')
    yield word.strip() if has_word else None, tree['string_to_param']
  elif not set(tree).isdisjoint(word_vectors.NAMES):
    yield None, tree
  elif all(str(name).startswith(FLAT) for name in tree):
    yield None, {name.removeprefix(FLAT): x for name, x in tree.items()}
  else:
    check_words(tree, widths)
    for word, vectors in tree.items():
      yield word.strip(), {'*': vectors}


def check_words(tree: Tree, widths: Mapping[str, int]) -> None:
  """Raises ValueError if a tree is not {word: vectors}."""
  others = [
    str(name)
    for name, tensor in tree.items()
    if not isinstance(name, str)
    or not isinstance(tensor, safetensors_file.LazyTensor)
    or len(tensor.shape) not in (1, 2)
    or (len(tree) > 1 and tensor.shape[-1] not in widths.values())
  ]
  if others:
    raise ValueError(
      f'it is no textual inversion: {len(others)} of {len(tree)} entries are '
      f'no vectors of a word: {companions.format_list(others)}. Pass a LoRA '
      'by --lora, and a model by --weights'
    )


def join(first: Word, second: Word) -> Word:
  """Joins the vectors of one word from two files.

  Raises:
    ValueError: if both have vectors of the same text encoder.
  """
  both = sorted(set(first.vectors) & set(second.vectors))
  if both:
    raise ValueError(
      f'{first.path} and {second.path} both have the word {first.name!r} for '
      f'{" and ".join(both)}: pass one of them as NAME=FILE with another name'
    )
  return dataclasses.replace(
    first,
    vectors=first.vectors | second.vectors,
    aliases=first.aliases + second.aliases,
  )
