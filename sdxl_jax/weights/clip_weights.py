"""Loads CLIP's pair of encoders as transformers or open_clip publish them.

open_clip names the image encoder's tensors `visual.*`. Its text encoder, and
the blocks of both, have the names of SDXL's second text encoder in single
files.
"""

import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from sdxl_jax.models import clip_image
from sdxl_jax.weights import metric_files, safetensors_file, tensor_files
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.single_file import ldm_names

Tensors = dict[str, safetensors_file.LazyTensor]
# By which the layouts are told apart, and the names of each encoder.
OPEN_CLIP = 'visual.conv1.weight'
TRANSFORMERS = 'vision_model.embeddings.patch_embedding.weight'
IMAGE = ('vision_model.', 'visual_projection.')
POSITIONS = re.compile(r'.*\.position_ids$')
# Tensors of open_clip's image encoder outside of its blocks.
VISUAL = {
  'vision_model.embeddings.class_embedding': 'class_embedding',
  'vision_model.embeddings.patch_embedding.weight': 'conv1.weight',
  'vision_model.embeddings.position_embedding.weight': 'positional_embedding',
  'vision_model.pre_layrnorm.weight': 'ln_pre.weight',
  'vision_model.pre_layrnorm.bias': 'ln_pre.bias',
  'vision_model.post_layernorm.weight': 'ln_post.weight',
  'vision_model.post_layernorm.bias': 'ln_post.bias',
  'visual_projection.weight': 'proj',
}


def load_clip(
  name: str,
  path: str | pathlib.Path | None = None,
  shard: Callable[[Any], Any] = lambda target: target,
) -> dict[str, Any]:
  """Loads {'image': parameters, 'text': parameters} of a pair of encoders.

  Args:
    name: one of clip_image.PAIRS.
    path: of the file, or of the folder where it lies, see metric_files.find.
    shard: adds shardings to a tree of shapes, see pretrained.Net.load.

  Raises:
    FileNotFoundError: where there is no file, with where to get it.
    ValueError: if the file holds something else, or for an unknown name.
  """
  check_name(name)
  path = metric_files.find(metric_files.CLIP[name], path)
  try:
    return load_pair(
      tensor_files.open_file(path).tensors, clip_image.PAIRS[name], shard
    )
  except ValueError as error:
    raise ValueError(
      f'{path}: not the weights of {name} ({error}). They are published at '
      f'{metric_files.CLIP[name].url}'
    ) from error


def check_name(name: str) -> None:
  """Raises ValueError for a name that is not one of clip_image.PAIRS."""
  if name not in clip_image.PAIRS:
    raise ValueError(
      f'no CLIP {name!r}: choose one of {", ".join(clip_image.PAIRS)}'
    )


def load_pair(
  tensors: Tensors,
  pair: clip_image.CLIP,
  shard: Callable[[Any], Any] = lambda target: target,
) -> dict[str, Any]:
  """Loads the parameters of a pair from the tensors of a file.

  Raises:
    ValueError: if names are left over on either side, or a shape differs.
  """
  shapes = shard(jax.eval_shape(pair.init, jax.random.key(0)))
  layouts = {OPEN_CLIP: from_open_clip, TRANSFORMERS: from_transformers}
  for mark, read in layouts.items():
    if mark in tensors:
      parts = read(tensors, shapes)
      return {
        net: tensor_names.from_published(parts[net], shapes[net])
        for net in shapes
      }
  raise ValueError(
    f'it has neither {TRANSFORMERS} (transformers) nor {OPEN_CLIP} (open_clip)'
  )


def from_transformers(tensors: Tensors, shapes: dict) -> dict[str, Tensors]:
  """Splits the tensors of a CLIPModel between the two encoders."""
  del shapes
  parts = {'image': {}, 'text': {}}
  for name, tensor in tensors.items():
    if not POSITIONS.match(name):  # 0, 1, 2, ...
      parts['image' if name.startswith(IMAGE) else 'text'][name] = tensor
  return parts


def from_open_clip(tensors: Tensors, shapes: dict) -> dict[str, Tensors]:
  """Renames the tensors of open_clip's CLIP, and splits fused ones."""
  originals = {
    'image': original_image,
    'text': ldm_names.original_text_encoder_2,
  }
  parts, used = {}, set()
  for net, original in originals.items():
    parts[net] = {}
    for name in tensor_names.locations(tensor_names.flat(shapes[net])):
      source, transform = original(name)
      if source in tensors:
        used.add(source)
        parts[net][name] = transform.to_diffusers(tensors[source])
  # What is left over is judged with the text encoder's tensors.
  left = {n: x for n, x in tensors.items() if n not in used}
  parts['text'] |= left
  return parts


def original_image(name: str) -> tuple[str, ldm_names.Transform]:
  """Translates the name of a tensor of the image encoder to open_clip's."""
  if name in VISUAL:
    is_projection = name == 'visual_projection.weight'
    transform = ldm_names.TRANSPOSE if is_projection else ldm_names.KEEP
    return f'visual.{VISUAL[name]}', transform
  # Its blocks have the same names as the text encoder's.
  text_name = name.replace('vision_model.', 'text_model.', 1)
  source, transform = ldm_names.original_text_encoder_2(text_name)
  return f'visual.{source}', transform
