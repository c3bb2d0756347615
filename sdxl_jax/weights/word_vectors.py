"""Assigns the vectors of a word of textual inversion to the text encoders."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdxl_jax.weights import checked_cast, safetensors_file

# The text encoder of a tensor, by its name.
TEXT_ENCODERS = {
  'clip_l': 'text_encoder',
  'clip_g': 'text_encoder_2',
  'text_encoders_0': 'text_encoder',
  'text_encoders_1': 'text_encoder_2',
}
ANY = ('emb_params', '*')  # names of tensors whose width decides
NAMES = (*TEXT_ENCODERS, *ANY)
ABSENT = ('t5', 't5xxl')  # of text encoders that SDXL does not have
# Other models, by the width of their token embeddings.
OTHERS = {
  1024: ', such as Stable Diffusion 2',
  4096: ', such as one with T5',
}


def assign(
  tensors: Mapping[str, Any], widths: Mapping[str, int]
) -> dict[str, np.ndarray]:
  """Returns {text encoder: float32 [n, width]} of the tensors of a word.

  Raises:
    ValueError: for a tensor of a wrong shape, or that is not finite; without
      any for the text encoders of SDXL.
  """
  vectors, has_vectors = {}, False
  for name, tensor in tensors.items():
    if name in ABSENT:
      continue
    if name not in NAMES and len(tensors) > 1:
      reason = f', as {", ".join(NAMES)} are'
      if str(name).endswith('_out'):  # of OneTrainer
        reason = (
          ': it replaces the output of a text encoder, which is not '
          'implemented. Use a word that was learned without output embeddings'
        )
      raise ValueError(f'its tensor {name!r} is not known{reason}')
    check_vectors(name, tensor)
    encoder, has_vectors = encoder_of(name, tensor.shape[-1], widths), True
    if encoder in vectors:
      raise ValueError(f'it has two tensors for {encoder}, {name} is one')
    if encoder in widths:
      vectors[encoder] = read_vectors(name, tensor)
  if not has_vectors:
    raise ValueError("it has no vectors for SDXL's text encoders")
  return vectors


def encoder_of(name: str, width: int, widths: Mapping[str, int]) -> str:
  """Returns the text encoder of vectors, which may be one a refiner lacks.

  Raises:
    ValueError: for vectors of another width.
  """
  encoder = TEXT_ENCODERS.get(name)
  if encoder is None:
    encoder = next((n for n, size in widths.items() if size == width), None)
  if 'text_encoder' not in widths:
    # Vectors of CLIP-L are the shorter ones.
    is_short = width < min(widths.values()) and width not in OTHERS
    if encoder == 'text_encoder' or (encoder is None and is_short):
      return 'text_encoder'
  if encoder is None or width != widths.get(encoder):
    of_model = ' and '.join(f'{n} {size}' for n, size in widths.items())
    raise ValueError(
      f'its vectors ({name}) have {width} numbers, and the widths of the model '
      f'are {of_model}: it was trained for another model'
      f'{OTHERS.get(width, "")}'
    )
  return encoder


def check_vectors(name: str, tensor: Any) -> None:
  """Raises ValueError if a tensor has the shape or the type of no vectors."""
  if not isinstance(
    tensor, safetensors_file.LazyTensor
  ) or not checked_cast.is_floating(tensor.dtype):
    raise ValueError(f'{name} is no tensor of floating-point numbers')
  if len(tensor.shape) not in (1, 2) or 0 in tensor.shape:
    raise ValueError(
      f'{name} has the shape {tensor.shape}, and vectors of a word are '
      '[n, width]'
    )


def read_vectors(name: str, tensor: safetensors_file.LazyTensor) -> np.ndarray:
  """Returns vectors as float32 [n, width].

  Raises:
    ValueError: if a number is not finite, or overflows float32.
  """
  array = tensor.read()
  if array.dtype.itemsize > 4:
    checked_cast.check_finite(name, array, np.float32)
  return np.float32(np.atleast_2d(array))
