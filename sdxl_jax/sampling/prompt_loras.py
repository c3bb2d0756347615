"""LoRAs that prompts name as <lora:name:0.8>, from the folder --lora_dir."""

import os
from collections.abc import Iterable, Sequence

from sdxl_jax.sampling.located import Located, naming
from sdxl_jax.sampling.sample_request import Request
from sdxl_jax.text import prompt_tags
from sdxl_jax.weights.lora import lora_file


def common(
  located: Iterable[Located], folder: str | os.PathLike[str] | None
) -> tuple[str, ...]:
  """Returns the LoRAs that all requests name, whose weights are merged once.

  Args:
    located: the request of each image.
    folder: that holds the files of the names; None: the tags are left out.

  Returns:
    Each as 'FILE:WEIGHT', in the order of the first request.

  Raises:
    FileNotFoundError: for a name without a file.
    ValueError: for requests that name different LoRAs.
  """
  if folder is None:
    return ()
  first, loras, files = None, (), ()
  for location, request in located:
    named = loras_of(request)
    if first is not None and sorted(named) == sorted(loras):
      continue
    with naming(location):
      found = find(named, folder)
    if first is not None:
      here, there = ([lora.tag for lora in each] for each in (named, loras))
      raise ValueError(
        f'{location} names the LoRAs {here} and {first} {there}, and weights '
        'are merged once in a command: use one command for each'
      )
    first, loras, files = location, named, found
  return files


def loras_of(request: Request) -> tuple[prompt_tags.Lora, ...]:
  """Returns the LoRAs that the prompts of a request name.

  A tag of prompt_2 that stands in the prompt too counts once.
  """
  _, loras = prompt_tags.take_loras(request.prompt or '')
  _, loras_2 = prompt_tags.take_loras(request.prompt_2 or '')
  return loras + tuple(lora for lora in loras_2 if lora not in loras)


def find(
  loras: Sequence[prompt_tags.Lora], folder: str | os.PathLike[str]
) -> tuple[str, ...]:
  """Finds the files of LoRAs in a folder, each as 'FILE:WEIGHT'.

  Raises:
    FileNotFoundError: for a name without a file.
    ValueError: for a name that several files have.
  """
  return tuple(
    f'{lora_file.find_by_name(folder, lora.name)}:{lora.weight!r}'
    for lora in loras
  )
