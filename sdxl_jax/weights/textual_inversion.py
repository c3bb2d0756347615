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
)

Tree = dict[str, Any]  # what a file holds
# (word or None, {name of a tensor: vectors}).
Entry = tuple[str | None, dict[str, np.ndarray]]
# The text encoder of a tensor, by its name.
TEXT_ENCODERS = {
  'clip_l': 'text_encoder',
  'clip_g': 'text_encoder_2',
  'text_encoders_0': 'text_encoder',
  'text_encoders_1': 'text_encoder_2',
}
ANY = ('emb_params', '*')  # names of tensors whose width decides
ABSENT = ('t5', 't5xxl')  # of text encoders that SDXL does not have
# Other models, by the width of their token embeddings.
OTHERS = {
  1024: ', such as Stable Diffusion 2',
  4096: ', such as one with T5',
}
BUNDLE = re.compile(r'bundle_emb\.(.+?)\.(?:string_to_param\.)?([^.]+)')
FLAT = 'string_to_param.'  # of A1111's files as safetensors
# The files in a folder that diffusers wrote.
FILES = ('learned_embeds', 'learned_embeds_2')
SUFFIXES = ('.safetensors', '.bin')


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
  try:
    entries = list(split(read_tree(path), widths))
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
      word = name if name is not None else own or path.stem
      vectors = assign(tensors, widths)
      words.append(Word(word, vectors, aliases, path))
  except ValueError as error:
    text = str(error)
    prefix = '' if str(path) in text else f'embedding {path}: '
    raise ValueError(prefix + text) from None
  return words


def read_tree(path: pathlib.Path) -> Tree | np.ndarray:
  """Reads the tensors of a safetensors file, or the tree of a pickle."""
  if foreign_files.is_torch_pickle(path):
    return torch_pickle.load(path)
  tensors = safetensors_file.load(path).tensors
  # A LoRA file may be large: of a bundle, only the words are read.
  bundled = {n: t for n, t in tensors.items() if BUNDLE.fullmatch(n)}
  return {name: tensor.read() for name, tensor in (bundled or tensors).items()}


def split(
  tree: Tree | np.ndarray, widths: Mapping[str, int]
) -> Iterator[Entry]:
  """Yields each word of a file: (word or None, {name of a tensor: tensor}).

  Raises:
    ValueError: for a file that holds anything else.
  """
  if isinstance(tree, np.ndarray):
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
  elif not set(tree).isdisjoint((*TEXT_ENCODERS, *ANY)):
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
    or not isinstance(tensor, np.ndarray)
    or tensor.ndim not in (1, 2)
    or (len(tree) > 1 and tensor.shape[-1] not in widths.values())
  ]
  if others:
    raise ValueError(
      f'it is no textual inversion: {len(others)} of {len(tree)} entries are '
      f'no vectors of a word: {companions.format_list(others)}. Pass a LoRA '
      'by --lora, and a model by --weights'
    )


def assign(
  tensors: Mapping[str, Any], widths: Mapping[str, int]
) -> dict[str, np.ndarray]:
  """Returns {text encoder: float32 [n, width]} of the tensors of a word.

  Raises:
    ValueError: for a tensor of a wrong shape, or that is not finite.
  """
  vectors = {}
  for name, tensor in tensors.items():
    if name in ABSENT:
      continue
    if name not in TEXT_ENCODERS and name not in ANY and len(tensors) > 1:
      known = ', '.join([*TEXT_ENCODERS, *ANY])
      text = f'its tensor {name!r} is not known, as {known} are'
      if name.endswith('_out'):  # of OneTrainer
        text = (
          f'its tensor {name!r} is not known: it replaces the output of a text '
          'encoder, which is not implemented. Use a word that was learned '
          'without output embeddings'
        )
      raise ValueError(text)
    array = check_vectors(name, tensor)
    encoder = TEXT_ENCODERS.get(name)
    if encoder is None:
      fitting = (n for n, width in widths.items() if width == array.shape[1])
      encoder = next(fitting, None)
    # A refiner lacks CLIP-L; other vectors must fit.
    if encoder not in widths and 'text_encoder' not in widths:
      continue
    if encoder is None or array.shape[1] != widths[encoder]:
      of_model = ' and '.join(f'{n} {width}' for n, width in widths.items())
      raise ValueError(
        f'its vectors ({name}) have {array.shape[1]} numbers, and the widths '
        f'of the model are {of_model}: it was trained for another model'
        f'{OTHERS.get(array.shape[1], "")}'
      )
    if encoder in vectors:
      raise ValueError(f'it has two tensors for {encoder}, {name} is one')
    vectors[encoder] = array
  return vectors


def check_vectors(name: str, tensor: Any) -> np.ndarray:
  """Returns vectors as float32 [n, width].

  Raises:
    ValueError: for a tensor of another shape or type, or that is not finite.
  """
  if not isinstance(tensor, np.ndarray) or not checked_cast.is_floating(
    tensor.dtype
  ):
    raise ValueError(f'{name} is no tensor of floating-point numbers')
  if tensor.ndim not in (1, 2) or not tensor.size:
    raise ValueError(
      f'{name} has the shape {tensor.shape}, and vectors of a word are '
      '[n, width]'
    )
  if not np.isfinite(tensor.astype(np.float32)).all():
    raise ValueError(
      f'{name} contains NaN or infinity, so the word cannot be used: '
      're-download the file, or use one of an earlier step'
    )
  return np.float32(np.atleast_2d(tensor))


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
