"""Writes learned words in the layouts that other programs read.

kohya      a file with clip_l and clip_g, of ComfyUI, A1111 and sd-scripts,
           which name the word after the file
diffusers  a folder with learned_embeds.safetensors for CLIP-L and
           learned_embeds_2.safetensors for bigG, {word: vectors}
"""

import pathlib

from sdxl_jax import atomic_write
from sdxl_jax.weights import (
  safetensors_file,
  textual_inversion,
  word_vectors,
)

LAYOUTS = ('kohya', 'diffusers')
# {text encoder: name of its tensor} and of its file.
TENSORS = {'text_encoder': 'clip_l', 'text_encoder_2': 'clip_g'}
FILES = dict(zip(TENSORS, textual_inversion.FILES))


def save(
  path: str | pathlib.Path,
  word: textual_inversion.Word,
  layout: str,
  dtype: str | None = None,
  metadata: dict[str, str] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes a word atomically.

  Args:
    path: of the file, or of the folder of diffusers.
    word: to write.
    layout: one of LAYOUTS.
    dtype: 'float32', 'float16' or 'bfloat16'; None: float32.
    metadata: {name: text} of the files, in addition to the word.
    overwrite: whether to replace what is at the path.

  Raises:
    ValueError: for an unknown layout, or a number that overflows the dtype.
  """
  check_layout(layout)
  vectors = {
    net: safetensors_file.from_array(word.vectors[net])
    for net in word_vectors.TEXT_ENCODERS.values()
    if net in word.vectors
  }
  metadata = {textual_inversion.WORD: word.name} | (metadata or {})
  with atomic_write.atomic_path(path, overwrite) as partial:
    if layout == 'kohya':
      tensors = {TENSORS[net]: x for net, x in vectors.items()}
      safetensors_file.write(partial, tensors, dtype, metadata)
      return
    partial.mkdir()
    for net, x in vectors.items():
      file = partial / f'{FILES[net]}.safetensors'
      safetensors_file.write(file, {word.name: x}, dtype, metadata)


def check_layout(layout: str) -> None:
  """Raises ValueError for a layout that is not of embeddings."""
  if layout not in LAYOUTS:
    raise ValueError(
      f'dialect is {layout!r}, which embeddings do not have: choose one of '
      f'{LAYOUTS}'
    )
