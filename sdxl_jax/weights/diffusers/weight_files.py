"""Finds the files that hold the weights of a net in the diffusers layout.

A net may be stored several times, in files whose names differ by a mark, the
variant: of a dtype, 'fp16' and 'bf16', or of parameters without averaging,
'non_ema'. Plain files have none:

  diffusion_pytorch_model.safetensors
  diffusion_pytorch_model.fp16.safetensors
  diffusion_pytorch_model.safetensors.index.json
  diffusion_pytorch_model.safetensors.index.fp16.json

Where there are no safetensors, state dicts of PyTorch are read (.bin).
"""

import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from sdxl_jax.weights import companions

# The stem of the names of a component's files.
STEMS = {
  'unet': 'diffusion_pytorch_model',
  'vae': 'diffusion_pytorch_model',
  'text_encoder': 'model',
  'text_encoder_2': 'model',
  'controlnet': 'diffusion_pytorch_model',
}
PLAIN = ''  # the variant of files without a mark
SHARD = re.compile(r'-\d+-of-\d+')
FLAGS = (
  '--variant (of convert: --source_variant; of a run: config.init_variant)'
)
# The stem of transformers' pickles differs from that of its safetensors.
PICKLED = {'model': 'pytorch_model'}


class Choice(NamedTuple):
  """The file of a net, and why it was chosen."""

  path: pathlib.Path  # of a safetensors file, or of the index of several
  note: str | None  # for the user, where another was expected


def find_variants(folder: pathlib.Path, stem: str) -> dict[str, pathlib.Path]:
  """Finds {variant: file or index} of a net; PLAIN comes first.

  Args:
    folder: of the net.
    stem: of the names of its files.
  """
  names = [p.name for p in folder.glob('*') if p.is_file()]
  return {tag: folder / n for tag, n in variants_in(names, stem).items()}


def variants_in(names: Iterable[str], stem: str) -> dict[str, str]:
  """Finds {variant: name of a file or an index}; PLAIN comes first.

  Args:
    names: of the files in the folder of a net.
    stem: of the names of its weights.
  """
  name, pickled = re.escape(stem), re.escape(PICKLED.get(stem, stem))
  patterns = (
    rf'{name}(?:\.(?P<tag>[^.]+))?\.safetensors',
    rf'{name}\.safetensors\.index(?:\.(?P<tag>[^.]+))?\.json',
    rf'{name}\.(?P<tag>[^.]+)\.safetensors\.index\.json',
    rf'{pickled}(?:\.(?P<tag>[^.]+))?\.bin',
    rf'{pickled}\.bin\.index(?:\.(?P<tag>[^.]+))?\.json',
  )
  # A file comes before an index of the same variant, and safetensors first.
  names, found = sorted(names), {}
  for pattern in patterns:
    for name in names:
      match = re.fullmatch(pattern, name)
      tag = match and (match['tag'] or PLAIN)
      if match and not SHARD.search(name):
        found.setdefault(tag, name)
  return dict(sorted(found.items()))


def choose(
  folder: pathlib.Path, stem: str, variant: str | None = None
) -> Choice:
  """Chooses the file of a net.

  Args:
    folder: of the net.
    stem: of the names of its files.
    variant: which files to read, or the plain ones where the net has none of
      them; None: the plain ones, or the only other ones.

  Raises:
    FileNotFoundError: if there are no weights.
    ValueError: if there are several and no plain ones.
  """
  found = find_variants(folder, stem)
  if not found:
    raise FileNotFoundError(explain_absent(folder, stem))
  if variant is not None and variant in found:
    return Choice(found[variant], None)
  if PLAIN in found:
    note = f'no variant {variant}, so that plain files are read'
    return Choice(found[PLAIN], note if variant else None)
  if len(found) > 1:
    absent = 'plain ones' if variant is None else repr(variant)
    raise ValueError(
      f'{folder} has weights of the variants {", ".join(found)}, and no '
      f'{absent}: choose one of them with {FLAGS}'
    )
  ((tag, path),) = found.items()
  return Choice(path, f'the variant {tag} is read, the only one there is')


def check_variant(
  folder: pathlib.Path, nets: dict[str, pathlib.Path], variant: str | None
) -> None:
  """Raises ValueError where none of the nets of a folder has a variant."""
  found = variants_of(nets)
  if variant is not None and variant not in found:
    raise ValueError(
      f'{folder} has no weights of the variant {variant!r}; it has '
      f'{", ".join(sorted(filter(None, found))) or "plain ones only"}: choose '
      f'another with {FLAGS}, or leave it out'
    )


def variants_of(nets: dict[str, pathlib.Path]) -> set[str]:
  """Finds the variants of some nets, the folder of each by its name."""
  return {
    tag
    for name, path in nets.items()
    for tag in find_variants(path, STEMS[name])
  }


def variant_notes(
  folders: dict[str, pathlib.Path], variant: str | None
) -> tuple[str, ...]:
  """Returns lines on files of another variant than was asked for."""
  notes = {}
  for name, folder in folders.items():
    # An error is raised when the net itself is opened.
    if find_variants(folder, STEMS[name]):
      note = choose(folder, STEMS[name], variant).note
      notes.setdefault(note, []).append(name)
  return tuple(
    f'{", ".join(names)}: {note}' for note, names in notes.items() if note
  )


def explain_absent(folder: pathlib.Path, stem: str) -> str:
  """Describes a folder without weights of a net."""
  if not folder.is_dir():
    return (
      f'{folder} not found, which holds a net of the model: the folder is '
      'incomplete, re-download it'
    )
  others = sorted(
    path.name
    for path in folder.iterdir()
    if path.is_file() and path.suffix not in ('.json', '.txt', '.md')
  )
  has = (
    f'; nothing is read of {companions.format_list(others)}' if others else ''
  )
  return (
    f'{folder} has no weights: neither {stem}.safetensors nor an index of it '
    f'was found{has}. Download the .safetensors of this model into it, or '
    'convert the weights to safetensors'
  )
