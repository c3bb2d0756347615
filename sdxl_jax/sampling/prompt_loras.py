"""LoRAs that prompts name as <lora:name:0.8>, from the folder --lora_dir."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from sdxl_jax.text import prompt_tags
from sdxl_jax.weights.lora import lora_file


def resolve(
  specs: Sequence[str], folder: str | os.PathLike[str] | None
) -> list[str]:
  """Returns LoRAs as 'FILE' or 'FILE:WEIGHT', those named by tags looked up.

  Args:
    specs: each 'FILE', 'FILE:WEIGHT' or '<lora:NAME:WEIGHT>'.
    folder: that holds the files of the names.

  Raises:
    FileNotFoundError: for a name without a file.
    ValueError: for a tag that cannot be followed, or without a folder.
  """
  found = []
  for spec in specs:
    if not spec.startswith('<'):
      found.append(spec)
      continue
    _, loras = prompt_tags.take_loras(spec)
    if not loras or folder is None:
      raise ValueError(
        f'the LoRA {spec!r} is looked up in a folder: pass lora_dir, or FILE '
        'or FILE:WEIGHT in its place'
      )
    for lora in loras:
      path = lora_file.find_by_name(folder, lora.name)
      found.append(f'{path}:{lora.weight!r}')
  return found


def tags_of(request: Any) -> tuple[str, ...]:
  """Returns the tags in the prompts of a sample_request.Request.

  A tag of prompt_2 that stands in the prompt too counts once.
  """
  _, loras = prompt_tags.take_loras(request.prompt or '')
  _, loras_2 = prompt_tags.take_loras(request.prompt_2 or '')
  loras += tuple(lora for lora in loras_2 if lora not in loras)
  return tuple(lora.tag for lora in loras)


def common(
  located: Iterable[tuple[str, Any]], folder: str | os.PathLike[str] | None
) -> tuple[str, ...]:
  """Returns the tags of all requests, whose weights are merged once.

  Args:
    located: (where it stands, Request) of each image.
    folder: without one the tags are left out.

  Raises:
    FileNotFoundError: for a name without a file.
    ValueError: for requests that name different LoRAs.
  """
  first, tags = None, ()
  for location, request in located:
    found = tags_of(request)
    if folder is None:
      continue
    try:
      resolve(found, folder)
    except (OSError, ValueError) as error:
      raise type(error)(f'{location}: {error}') from error
    if first is not None and sorted(found) != sorted(tags):
      raise ValueError(
        f'{location} names the LoRAs {list(found)} and {first} {list(tags)}, '
        'and weights are merged once in a command: use one command for each'
      )
    if first is None:
      first, tags = location, found
  return tags
