"""Describes what a model contains, in lines for the user."""

from collections.abc import Callable
from typing import Any

from sdxl_jax.weights import companions, pretrained, safetensors_file
from sdxl_jax.weights.diffusers import edm_config

Say = Callable[[str], Any]  # prints a line for the user


def describe(model: pretrained.Model, dtype: str | None, say: Say) -> int:
  """Prints the contents of a model; returns the bytes that will be written."""
  say(f'{model.path}: {model.kind}')
  total = 0
  for name in model.index.components:
    net = model.net(name)
    tensors = net.tensors()
    size = sum(safetensors_file.sizes(tensors, dtype).values())
    stored = sorted({tensor.dtype.name for tensor in tensors.values()})
    say(
      f'  {name}: {len(tensors):,} tensors, {" and ".join(stored)} > '
      f'{dtype or "the same"}, from {net.location}'
    )
    total += size
  kind = 'refiner' if model.index.refiner else 'base'
  levels = ''
  if model.scheduler.get('rescale_betas_zero_snr'):
    levels = ', down to zero SNR'
  elif edm_config.is_edm(model.scheduler):
    levels = ', at continuous noise levels (EDM)'
  say(f'  {kind}, predicts {model.scheduler["prediction_type"]}{levels}')
  for note in describe_reading(model):
    say(f'  note: {note}')
  return total


def describe_reading(model: pretrained.Model) -> tuple[str, ...]:
  """Returns lines for the user on how a model was read.

  They are its notes, and a line with the number and the names of tensors that
  no net reads.
  """
  names = list(model.passed_over)
  for name in model.loaders:
    names += model.net(name).passed_over()
  return model.notes + tuple(filter(None, [companions.note(names)]))
