"""Finds the nets in a file by the names of its tensors.

All names count, not a few that a net must have: a file in which one is missing
still holds the net, and the error can say which tensor it lacks.
"""

import collections
import enum
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sdxl_jax.weights import companions, safetensors_file
from sdxl_jax.weights.diffusers import spellings

Tensors = dict[str, safetensors_file.LazyTensor]


class Naming(enum.Enum):
  """Whose names a net's tensors have."""

  ORIGINAL = enum.auto()  # LDM's and open_clip's
  DIFFUSERS = enum.auto()  # and transformers'


class Family(NamedTuple):
  """How nets of one kind are stored."""

  # {naming: beginnings of names without prefix, none of which is in another}.
  beginnings: dict[Naming, str]
  # {prefix: component, or None where more than the prefix decides}.
  prefixes: dict[str, str | None]


UNET_PREFIXES = (
  'model.diffusion_model.',
  'diffusion_model.',
  'model.unet.',
  'unet.',
  'model.',
  '',
)
VAE_PREFIXES = 'first_stage_model.', 'vae.', 'autoencoder.', 'model.vae.', ''
FIRST_EMBEDDER = 'conditioner.embedders.0.'  # of the refiner, the only one
SECOND_EMBEDDER = 'conditioner.embedders.1.'
FAMILIES = (
  Family(
    {
      Naming.ORIGINAL: r'(?:input_blocks|middle_block|output_blocks|time_embed'
      r'|label_emb|out)\.\d',
      Naming.DIFFUSERS: r'(?:down_blocks|up_blocks)\.\d|mid_block\.'
      r'|time_embedding\.|add_embedding\.|conv_in\.|conv_out\.|conv_norm_out\.',
    },
    dict.fromkeys(UNET_PREFIXES, 'unet'),
  ),
  Family(
    {
      Naming.ORIGINAL: r'(?:en|de)coder\.(?:mid|up|down|norm_out)\.',
      Naming.DIFFUSERS: r'(?:en|de)coder\.'
      r'(?:mid_block|up_blocks|down_blocks|conv_norm_out)\.',
    },
    dict.fromkeys(VAE_PREFIXES, 'vae'),
  ),
  Family(
    {
      Naming.ORIGINAL: r'transformer\.resblocks\.|token_embedding\.'
      r'|positional_embedding|ln_final\.',
      Naming.DIFFUSERS: r'(?:text_model\.)?'
      r'(?:encoder\.layers\.\d+\.(?:self_attn|mlp|layer_norm\d)\.'
      r'|embeddings\.(?:token|position)_embedding\.|final_layer_norm\.)',
    },
    {
      FIRST_EMBEDDER: None,
      SECOND_EMBEDDER: 'text_encoder_2',
      'text_encoders.clip_l.': 'text_encoder',
      'text_encoders.clip_g.': 'text_encoder_2',
      'clip_l.': 'text_encoder',
      'clip_g.': 'text_encoder_2',
      'text_encoder.': 'text_encoder',
      'text_encoder_1.': 'text_encoder',
      'text_encoder_2.': 'text_encoder_2',
      '': None,
    },
  ),
)
# Modules of ComfyUI and of sgm around a text encoder.
INNER = re.compile(r'^(?:transformer\.(?!resblocks)|model\.)')
TEXT = FAMILIES[-1]
# Widths of the tensors that distinguish the text encoders.
WIDTHS = {768: 'text_encoder', 1280: 'text_encoder_2'}
WIDTH_OF = re.compile(
  r'(?:text_model\.)?(?:final_layer_norm|ln_final)\.(?:weight|bias)'
)


class FoundNet(NamedTuple):
  """A net in a file."""

  component: str
  naming: Naming
  prefix: str  # with a text encoder's inner one
  tensors: Tensors  # {name without prefix: tensor}


def find_nets(
  tensors: Tensors, text_encoder_of: Callable[[int], str | None]
) -> tuple[list[FoundNet], Tensors]:
  """Returns (nets, the tensors that belong to none of them).

  Args:
    tensors: {name: tensor}.
    text_encoder_of: returns the component of a text encoder whose prefix does
      not decide it, from its width in channels.

  Raises:
    ValueError: for a text encoder of unknown kind, or a tensor that is stored
      twice.
  """
  counts = [
    (count, family, prefix, naming)
    for family in FAMILIES
    for (prefix, naming), count in count_prefixes(tensors, family)
  ]
  # Tensors of another net below the same prefix have no place in the one that
  # most of them are of.
  owners = {}
  for _, family, prefix, _ in sorted(counts, key=lambda row: -row[0]):
    owners.setdefault(prefix, family)
  places = {}  # {component: (prefix, naming, whether it is a text encoder)}
  for _, family, prefix, naming in counts:
    if owners[prefix] is not family:
      continue
    component = family.prefixes[prefix]
    if component is None:
      component = text_component(tensors, prefix, naming, text_encoder_of)
    places.setdefault(component, (prefix, naming, family is TEXT))
  # Longer prefixes come first: any name starts with the empty one.
  nets, rest = [], dict(tensors)
  for component, (prefix, naming, is_text) in sorted(
    places.items(), key=lambda item: -len(item[1][0])
  ):
    part = {n: t for n, t in rest.items() if n.startswith(prefix)}
    rest = {n: t for n, t in rest.items() if n not in part}
    if not part:  # all of them are below a longer prefix
      continue
    short = {n.removeprefix(prefix): t for n, t in part.items()}
    inner = common_inner(short) if is_text else ''
    if is_text:
      short = remove_inner(short)
    nets.append(FoundNet(component, naming, prefix + inner, short))
  return nets, rest


def count_prefixes(
  names: Iterable[str], family: Family
) -> list[tuple[tuple[str, Naming], int]]:
  """Lists ((prefix, naming), number of tensors), the most tensors first."""
  counts = collections.Counter()
  patterns = {n: re.compile(p) for n, p in family.beginnings.items()}
  prefixes = sorted(family.prefixes, key=len, reverse=True)
  for name in names:
    prefix = next(p for p in prefixes if name.startswith(p))
    inner = name.removeprefix(prefix)
    inner = INNER.sub('', inner) if family is TEXT else inner
    for naming, pattern in patterns.items():
      if pattern.match(inner):
        counts[prefix, naming] += 1
  return counts.most_common()


def common_inner(names: Iterable[str]) -> str:
  """Returns the prefix in INNER that most of a text encoder's names have."""
  matches = [INNER.match(name) for name in names]
  counts = collections.Counter(m[0] if m else '' for m in matches)
  return counts.most_common(1)[0][0]


def remove_inner(short: Tensors) -> Tensors:
  """Removes the prefixes in INNER from a text encoder's names.

  Raises:
    ValueError: if two tensors get one name, and their numbers differ.
  """
  pairs, seen = [], set()
  for name, tensor in short.items():
    inner = INNER.sub('', name)
    # CLIP's scale may lie inside and outside of a module.
    if inner in seen and companions.classify([inner]).harmless:
      inner = tensor.name
    seen.add(inner)
    pairs.append((inner, tensor))
  return spellings.collect(pairs)


def text_component(
  tensors: Tensors,
  prefix: str,
  naming: Naming,
  text_encoder_of: Callable[[int], str | None],
) -> str:
  """Decides which text encoder of SDXL has a prefix that leaves it open."""
  if prefix == FIRST_EMBEDDER:
    is_base = any(name.startswith(SECOND_EMBEDDER) for name in tensors)
    is_first = is_base or naming is Naming.DIFFUSERS
    return 'text_encoder' if is_first else 'text_encoder_2'
  width = next(
    (
      tensor.shape[0]
      for name, tensor in tensors.items()
      if WIDTH_OF.fullmatch(INNER.sub('', name)) and tensor.shape
    ),
    0,
  )
  component = WIDTHS.get(width) or text_encoder_of(width)
  if component is None:
    raise ValueError(
      f'it holds a text encoder of {width} channels, and those of SDXL have '
      f'{" and ".join(map(str, WIDTHS))}: pass a --base whose text encoder it '
      'is to replace'
    )
  return component
