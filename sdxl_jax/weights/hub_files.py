"""Chooses which files of a repository on the Hugging Face hub are needed."""

import re
from collections.abc import Collection, Iterable

from sdxl_jax.weights.diffusers import weight_files

FIRST = 'fp16'  # the variant that is taken where none is asked for
# Configs and tokenizers of a model, which are small.
SMALL = re.compile(
  r'model_index\.json|config\.json'
  r'|(scheduler|unet|vae|text_encoder|text_encoder_2)/[^/]*config\.json'
  r'|tokenizer(_2)?/[^/]+\.(json|txt)'
)
SUFFIXES = ('.safetensors', '.sft', '.ckpt', '.pt', '.pth', '.bin')


def small(names: Iterable[str]) -> list[str]:
  """Returns the configs and tokenizers among the files of a repository."""
  return [name for name in names if SMALL.fullmatch(name)]


def is_folder(names: Collection[str]) -> bool:
  """Checks whether a repository has the layout of diffusers."""
  return 'model_index.json' in names or 'config.json' in names


def nets_of(names: Collection[str]) -> dict[str, dict[str, list[str]]]:
  """Returns {folder: {stem: names in it}} of the nets of a repository."""
  stems = {f'{net}/': [stem] for net, stem in weight_files.STEMS.items()}
  if 'model_index.json' not in names:  # a net alone, of any kind
    stems = {'': sorted(set(weight_files.STEMS.values()))}
  found = {}
  for folder, of_net in stems.items():
    inner = [n[len(folder) :] for n in names if n.startswith(folder)]
    inner = [name for name in inner if '/' not in name]
    found[folder] = dict.fromkeys(of_net, inner)
  return found


def variants(names: Collection[str]) -> set[str]:
  """Returns the variants that a net of a repository is stored as."""
  return {
    tag
    for stems in nets_of(names).values()
    for stem, inner in stems.items()
    for tag in of_net(inner, stem)
  }


def of_net(inner: Iterable[str], stem: str) -> dict[str, str]:
  """Finds {variant: file or index} of a net, pickles only for want of others.

  Args:
    inner: names of the files in the folder of the net.
    stem: of its weights.
  """
  found = weight_files.variants_in(inner, stem)
  safe = {tag: name for tag, name in found.items() if '.safetensors' in name}
  return safe or found


def choose(
  names: Collection[str],
  variant: str | None = None,
  nets: Collection[str] | None = None,
) -> tuple[list[str], str | None]:
  """Chooses the files of some nets, with all configs and tokenizers.

  Args:
    names: of all files of a repository in the layout of diffusers.
    variant: of the weights; None: FIRST where a net has it.
    nets: which are needed, of pretrained.COMPONENTS; None: all.

  Returns:
    The names of the files, and the variant to read them with.

  Raises:
    ValueError: where no net has the variant, or there are several variants and
      neither FIRST nor plain files.
  """
  known = variants(names)
  if variant is not None and variant not in known:
    raise ValueError(
      f'it has no weights of the variant {variant!r}, but '
      f'{", ".join(sorted(filter(None, known))) or "plain ones only"}: choose '
      f'another with {weight_files.FLAGS}, or leave it out'
    )
  if variant is None and FIRST in known:
    variant = FIRST
  chosen = small(names)
  for folder, stems in nets_of(names).items():
    if nets is not None and folder and folder[:-1] not in nets:
      continue
    for stem, inner in stems.items():
      files = files_of(inner, stem, variant, folder)
      chosen += [folder + name for name in files]
    # An orbax export of ours.
    chosen += [n for n in names if folder and n.startswith(f'{folder}params/')]
  return sorted(chosen), variant


def files_of(
  inner: Collection[str], stem: str, variant: str | None, folder: str
) -> list[str]:
  """Returns the file of a net, or the index and the files that it is of.

  Args:
    inner: names of the files in the folder of the net.
    stem: of its weights.
    variant: to take, or else the plain files, or the only other ones.
    folder: of the net, for the error.
  """
  found = of_net(inner, stem)
  tag = next((t for t in (variant, weight_files.PLAIN) if t in found), None)
  if tag is None and len(found) > 1:
    raise ValueError(
      f'{folder or "it"} has weights of the variants {", ".join(found)}, and '
      f'no plain ones: choose one of them with {weight_files.FLAGS}'
    )
  if tag is None and not found:
    return []
  if tag is None:
    (tag,) = found
  name = found[tag]
  if not name.endswith('.json'):
    return [name]
  return [name, *(n for n in inner if is_shard(n, stem, tag, name))]


def is_shard(name: str, stem: str, tag: str, index: str) -> bool:
  """Checks whether a file is one of those that an index names.

  Args:
    name: of the file, as a.fp16-00001-of-00002.safetensors, or the same with
      the tag behind the number.
    stem: of the weights of the net.
    tag: the variant of the index.
    index: its name.
  """
  whole = weight_files.SHARD.sub('', name)
  is_of_kind = ('.safetensors' in name) == ('.safetensors' in index)
  return whole != name and is_of_kind and tag in of_net([whole], stem)
