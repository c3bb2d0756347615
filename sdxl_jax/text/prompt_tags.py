"""Tags in prompts that name files: <lora:name:0.8>, <hypernet:name:1>.

A tag is no text: it is taken out of the prompt whether weights in prompts are
read or not. Other programs also fill in __wildcards__ and {one|of|these}, which
are text here.
"""

import math
import re
from collections.abc import Collection
from typing import NamedTuple

from sdxl_jax.text import prompt_brackets

TAG = re.compile(r'<\s*(lora|lyco|hypernet)\s*:([^<>]*)>', re.I)
KEYS = ('te', 'unet')  # of the weights in a tag, in order
WILDCARD = re.compile(r'(?<!\w)__[\w./*-]+?__(?!\w)')
CHOICE = re.compile(r'\{[^{}]*\|[^{}]*\}')
EMBEDDING = re.compile(rf'\b{prompt_brackets.MARK}[\w.-]+')
# A group with a weight, and marks of A1111's syntax that ComfyUI's lacks.
WEIGHT = re.compile(rf'(?<!\\)\([^()]*:\s*{prompt_brackets.NUMBER}\s*\)')
A1111 = re.compile(
  rf'\bBREAK\b|\bAND\b|(?<!\\)\[[^\[\]]*(?:\|[^\[\]]*|:\s*{prompt_brackets.NUMBER}\s*)\]'
)


class Lora(NamedTuple):
  """A LoRA that a prompt names."""

  name: str  # of the file, without its folder and, mostly, its suffix
  weight: float = 1.0

  @property
  def tag(self) -> str:
    """The LoRA as prompts name it, with all digits of its weight."""
    weight = repr(self.weight).removesuffix('.0')
    return f'<lora:{self.name}:{weight}>'


def take_loras(prompt: str) -> tuple[str, tuple[Lora, ...]]:
  """Takes the tags out of a prompt.

  Returns:
    The text without tags and the spaces before them, and the LoRAs that they
    name, in order.

  Raises:
    ValueError: for a tag without a name, or with settings that one number
      cannot express.
  """
  loras = []
  for kind, content in TAG.findall(prompt):
    if kind.lower() != 'hypernet':
      loras.append(parse(prompt, content))
  return remove(prompt), tuple(loras)


def remove(prompt: str) -> str:
  """Returns a prompt without tags."""
  return re.sub(rf'\s*{TAG.pattern}', '', prompt, flags=re.I)


def parse(prompt: str, content: str) -> Lora:
  """Parses 'name', 'name:0.8', 'name:te=0.8:unet=0.8' of a tag.

  Raises:
    ValueError: see `take_loras`.
  """
  name, *settings = (part.strip() for part in content.split(':'))
  place = f'<lora:{content}> in the prompt {prompt!r}'
  if not name:
    raise ValueError(f'{place} has no name: write <lora:NAME:WEIGHT>')
  weights = set()
  for i, setting in enumerate(settings):
    key, _, value = (part.strip() for part in setting.rpartition('='))
    # The first two need no names.
    is_known = key in KEYS or (not key and i < len(KEYS))
    if not is_known or not re.fullmatch(prompt_brackets.NUMBER, value):
      raise ValueError(
        f'{place}: {setting!r} is no weight; write <lora:NAME:WEIGHT> with one '
        'number'
      )
    if not math.isfinite(float(value)):
      raise ValueError(f'{place}: {setting!r} is too large for a weight')
    weights.add(float(value))
  if len(weights) > 1:
    raise ValueError(
      f'{place} has different weights for text encoders and UNet, and a LoRA '
      'is merged with one: write <lora:NAME:WEIGHT>'
    )
  return Lora(name, *weights)


def without_tags(prompt: str) -> str:
  """Returns a prompt without tags, and warns of those that are lost."""
  text, loras = take_loras(prompt)
  for lora in loras:
    prompt_brackets.warn_of(
      f'{lora.tag} is left out of the prompt {prompt!r}: pass it to `load`, as '
      'loras=["FILE:WEIGHT"]'
    )
  warn_of_lost_tags(prompt)
  return text


def warn_of_lost_tags(prompt: str) -> None:
  """Warns of hypernetworks, which are not implemented."""
  for match in TAG.finditer(prompt):
    if match[1].lower() == 'hypernet':
      prompt_brackets.warn_of(
        f'{match[0]} is left out: hypernetworks are not implemented'
      )


def unknown_embeddings(prompt: str, known: Collection[str]) -> list[str]:
  """Returns what names an embedding in a prompt that is none.

  Args:
    prompt: text.
    known: lowercase names of the embeddings that are loaded.
  """
  found = []
  for match in EMBEDDING.findall(prompt):
    name = match.removeprefix(prompt_brackets.MARK).lower()
    if not {name, name.rstrip('.-')} & set(known):
      found.append(match)
  return found


def warn_of_text(prompt: str, syntax: str | None) -> None:
  """Warns of what is read as words, and means something to other programs.

  Args:
    prompt: text.
    syntax: of prompt weighting, 'a1111' or 'comfyui'; None: weights are text.
  """
  found = [(m, 'no wildcards are read') for m in WILDCARD.findall(prompt)]
  found += [(m, 'no choice is drawn') for m in CHOICE.findall(prompt)]
  # In a prompt of capitals, AND is a word.
  marks = [] if prompt.isupper() else A1111.findall(prompt)
  if syntax is None:
    marks = WEIGHT.findall(prompt) + marks
    found += [(m, 'pass --weighted_prompts for its syntax') for m in marks[:1]]
  elif syntax == 'comfyui':
    found += [(m, 'it is --prompt_syntax=a1111') for m in marks[:1]]
  for text, remedy in found:
    prompt_brackets.warn_of(
      f'{text!r} in the prompt {prompt!r} is read as words: {remedy}'
    )
