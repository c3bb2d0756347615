"""Finds LoRA files and adds them to a base model, in all key formats."""

import difflib
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from sdxl_jax.weights import checked_cast, companions, tensor_files
from sdxl_jax.weights.lora import lora_reader, merge

# The file in a folder that diffusers or PEFT wrote; older ones wrote pickles.
STEMS = ('pytorch_lora_weights', 'adapter_model')
FILES = (*(f'{s}.safetensors' for s in STEMS), *(f'{s}.bin' for s in STEMS))
SUFFIXES = ('.safetensors', '.sft', '.pt', '.ckpt', '.bin')
Loras = list[tuple[merge.Lora, float]]  # with their weights


def load(
  path: str | pathlib.Path,
  params: dict[str, Any],
  skip_unsupported: bool = False,
) -> merge.Lora:
  """Loads a LoRA file.

  Args:
    path: of a safetensors file or a pickle, or of a folder that diffusers or
      PEFT wrote; FILE#NAME chooses one of several adapters of PEFT.
    params: {net: parameters, or their shapes} of the base model it is for.
    skip_unsupported: whether to leave out tensors that cannot be applied.

  Returns:
    The changes of the file; its notes are lines for the user.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is of another method or another base model, or
      broken.
  """
  path, adapter = split_adapter(find(path), path)
  file = tensor_files.open_file(path)
  try:
    return lora_reader.read(
      file,
      merge.tensors_of(params),
      is_adapter_folder=path.stem == STEMS[1],
      adapter=adapter,
      skip_unsupported=skip_unsupported,
    )
  except checked_cast.StoredError:
    raise  # its message names the file
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from None


def load_all(
  params: dict[str, Any],
  specs: Sequence[str],
  skip_unsupported: bool = False,
) -> Loras:
  """Loads [(Lora, weight)] of files, each as 'FILE' or 'FILE:WEIGHT'."""
  pairs = [parse(spec) for spec in specs]
  return [(load(file, params, skip_unsupported), w) for file, w in pairs]


def notes(specs: Sequence[str], loras: Loras) -> tuple[str, ...]:
  """Returns the lines for the user on files that were loaded by specs."""
  return tuple(
    f'{spec}: {note}'
    for spec, (adapter, _) in zip(specs, loras)
    for note in adapter.notes
  )


def find(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the file at a path, which may be its folder, or FILE#NAME."""
  text = str(path)
  for candidate in filter(None, (text, text.rpartition('#')[0])):
    folder = pathlib.Path(candidate)
    for file in (folder, *(folder / name for name in FILES)):
      if file.is_file():
        return file
  raise FileNotFoundError(
    f'LoRA {path}: no such file, nor a folder with one of {", ".join(FILES)}'
  )


def split_adapter(
  file: pathlib.Path, path: str | pathlib.Path
) -> tuple[pathlib.Path, str | None]:
  """Returns (file, NAME or None) of a path FILE#NAME whose file was found."""
  if pathlib.Path(path).exists():
    return file, None
  return file, str(path).rpartition('#')[2]


def parse(spec: str) -> tuple[str, float]:
  """Parses 'FILE' or 'FILE:WEIGHT' into (file, weight).

  Raises:
    ValueError: if the weight is NaN or infinity.
  """
  file, colon, text = str(spec).rpartition(':')
  try:
    weight = float(text) if colon and file else None
  except ValueError:
    weight = None
  if weight is None:
    return str(spec), 1.0
  if not math.isfinite(weight):
    raise ValueError(f'LoRA {spec}: the weight is {text}, not a finite number')
  return file, weight


def find_by_name(folder: str | pathlib.Path, name: str) -> pathlib.Path:
  """Finds the LoRA file that <lora:NAME:WEIGHT> in a prompt means.

  Args:
    folder: with LoRA files, in subfolders too.
    name: of a file, with or without its suffix, or of a folder that diffusers
      or PEFT wrote; with or without the folders above it, in any case.

  Raises:
    FileNotFoundError: if there is no such folder or file.
    ValueError: if several files have the name.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f'lora_dir {folder}: no such folder')
  names = names_in(folder)
  wanted = name.replace('\\', '/').strip('/')
  for suffix in SUFFIXES:
    wanted = wanted.removesuffix(suffix)
  # The exact name comes before others that differ in case.
  for fold in (str, str.casefold):
    found = [
      path
      for path, known in names.items()
      if f'/{fold(known)}'.endswith(f'/{fold(wanted)}')
    ]
    if len(found) == 1:
      return found[0]
    if found:
      raise ValueError(
        f'{len(found)} LoRA files in {folder} are named {name!r}: '
        f'{companions.format_list(sorted(names[p] for p in found))}. Write '
        'the folder, too, as in <lora:FOLDER/NAME:1>'
      )
  stems = {n.rpartition('/')[2].casefold(): n for n in names.values()}
  stem = wanted.rpartition('/')[2].casefold()
  near = difflib.get_close_matches(stem, stems, n=3, cutoff=0.4)
  near = ', '.join(stems[name] for name in near)
  nearest = f'; the nearest are {near}' if near else ''
  raise FileNotFoundError(
    f'no LoRA file {name!r} among {len(names)} in {folder}{nearest}'
  )


def names_in(folder: pathlib.Path) -> dict[pathlib.Path, str]:
  """Returns {file: its name} of the LoRA files below a folder."""
  names = {}
  for path in sorted(folder.rglob('*')):
    if path.suffix.lower() in SUFFIXES and path.is_file():
      of_folder = path.name in FILES and path.parent != folder
      named = path.parent if of_folder else path.with_suffix('')
      names[path] = named.relative_to(folder).as_posix()
  # Of one LoRA in several formats, the first format is read.
  first = {}
  for path in sorted(names, key=lambda p: SUFFIXES.index(p.suffix.lower())):
    first.setdefault(names[path], path)
  return {path: name for name, path in first.items()}
