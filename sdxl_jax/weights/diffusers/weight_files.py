"""Finds the files that hold the weights of a net in the diffusers layout.

A net may be stored several times, in files whose names differ by a mark, the
variant: of a dtype, 'fp16' and 'bf16', or of parameters without averaging,
'non_ema'. Plain files have none:

  diffusion_pytorch_model.safetensors
  diffusion_pytorch_model.fp16.safetensors
  diffusion_pytorch_model.safetensors.index.json
  diffusion_pytorch_model.safetensors.index.fp16.json
"""

import pathlib
import re
from typing import NamedTuple

PLAIN = ''  # the variant of files without a mark
SHARD = re.compile(r'-\d+-of-\d+')


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
  name = re.escape(stem)
  patterns = (
    rf'{name}(?:\.(?P<tag>[^.]+))?\.safetensors',
    rf'{name}\.safetensors\.index(?:\.(?P<tag>[^.]+))?\.json',
    rf'{name}\.(?P<tag>[^.]+)\.safetensors\.index\.json',
  )
  # A file comes before an index of the same variant.
  found = {}
  for pattern in patterns:
    for path in sorted(folder.glob(f'{stem}*')):
      match = re.fullmatch(pattern, path.name)
      tag = match and (match['tag'] or PLAIN)
      if match and path.is_file() and not SHARD.search(tag):
        found.setdefault(tag, path)
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
  if variant is not None and variant in found:
    return Choice(found[variant], None)
  if PLAIN in found:
    note = f'{folder.name} has no variant {variant}: its plain files are read'
    return Choice(found[PLAIN], note if variant else None)
  if not found:
    raise FileNotFoundError(
      f'{folder} has no weights: neither {stem}.safetensors nor an index of it '
      'was found. Other formats (.bin, .ckpt, .msgpack) are not supported: '
      'convert them to safetensors'
    )
  if variant is None and len(found) == 1:
    ((tag, path),) = found.items()
    note = f'{folder.name}: the variant {tag} is read, the only one there is'
    return Choice(path, note)
  what = 'no plain ones' if variant is None else f'none of {variant!r}'
  raise ValueError(
    f'{folder} has weights of the variants {", ".join(found)}, and {what}: '
    'choose one of them with --variant'
  )
