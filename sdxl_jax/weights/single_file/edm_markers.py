"""The marks in single files of nets on continuous noise levels (EDM).

ComfyUI knows two: Playground v2.5 has the mean and the standard deviation of
its latents as the tensors edm_mean and edm_std; CosXL, which predicts v, the
limits of its noise levels, edm_vpred.sigma_max and edm_vpred.sigma_min.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sdxl_jax.weights import pretrained, safetensors_file
from sdxl_jax.weights.diffusers import edm_config

MEAN, STD = 'edm_mean', 'edm_std'
SIGMA_MAX, SIGMA_MIN = 'edm_vpred.sigma_max', 'edm_vpred.sigma_min'
NAMES = MEAN, STD, SIGMA_MAX, SIGMA_MIN
PLAYGROUND_SCALING = 0.5  # of latents; ComfyUI and diffusers have it built in
Tensors = dict[str, safetensors_file.LazyTensor]


class Marks(NamedTuple):
  """The facts that a file is marked with; empty without any."""

  scheduler: dict[str, Any]  # scheduler_config.json
  latents: dict[str, Any]  # fields of the config.json of the autoencoder


def read(tensors: Tensors, location: str) -> Marks:
  """Reads the marks of a file.

  Raises:
    ValueError: for one of a pair alone, or numbers that cannot be right.
  """
  found = {name: numbers(tensors[name]) for name in NAMES if name in tensors}
  # ComfyUI has a default of sigma_min.
  for name, other in ((MEAN, STD), (STD, MEAN), (SIGMA_MIN, SIGMA_MAX)):
    if name in found and other not in found:
      raise ValueError(f'{location} has {name} without {other}')
  for name, values in found.items():
    is_sound = bool(values) and np.isfinite(values).all()
    if not is_sound or (name != MEAN and min(values) <= 0):
      raise ValueError(f'{location}: {name} is {values}, which cannot be right')
  if MEAN in found:
    latents = {
      'latents_mean': found[MEAN],
      'latents_std': found[STD],
      'scaling_factor': PLAYGROUND_SCALING,
    }
    return Marks(edm_config.PLAYGROUND, latents)
  if SIGMA_MAX in found:
    limits = {name.split('.')[1]: x[0] for name, x in found.items()}
    return Marks(edm_config.COSXL | limits, {})
  return Marks({}, {})


def is_of(config: dict[str, Any], marked: dict[str, Any]) -> bool:
  """Whether a scheduler_config.json is of the net that the marks of a file are.

  Args:
    config: the parsed JSON, or {}.
    marked: see Marks.scheduler.
  """
  if not marked or not edm_config.is_edm(config):
    return False
  return matches(edm_config.DEFAULTS | config, marked)


def numbers(tensor: safetensors_file.LazyTensor) -> list[float]:
  """Reads a small tensor, with the digits that float32 has."""
  values = np.asarray(tensor.read(), np.float32).reshape(-1)
  return [float(f'{value:.7g}') for value in values]


def with_latents(
  open_net: Callable[[], pretrained.Net], latents: dict[str, Any]
) -> Callable[[], pretrained.Net]:
  """Returns a loader of the autoencoder with another scaling of latents."""

  def load():
    net = open_net()
    return dataclasses.replace(net, published=net.published | latents)

  return load


def write(model: pretrained.Model) -> Tensors:
  """Returns the marks of a model on continuous noise levels.

  Raises:
    ValueError: for one that has none.
  """
  scheduler = edm_config.DEFAULTS | model.scheduler
  vae = model.net('vae').config()
  marks = {}
  if matches(scheduler, edm_config.PLAYGROUND) and vae.latents_mean:
    marks = {MEAN: vae.latents_mean, STD: vae.latents_std}
    is_marked = vae.scaling_factor == PLAYGROUND_SCALING
  else:
    limits = {name: scheduler[name] for name in ('sigma_max', 'sigma_min')}
    marks = {f'edm_vpred.{name}': value for name, value in limits.items()}
    is_marked = matches(scheduler, edm_config.COSXL | limits)
  if not is_marked:
    raise ValueError(
      f'{model.path} takes continuous noise levels (EDM), and single files '
      'have marks for those of Playground v2.5 and of CosXL only: write a '
      'diffusers folder'
    )
  return {
    name: safetensors_file.from_array(np.float32(value))
    for name, value in marks.items()
  }


def matches(scheduler: dict[str, Any], known: dict[str, Any]) -> bool:
  """Whether two configs are of the same net, however it is sampled."""
  names = 'sigma_data', 'sigma_min', 'sigma_max', 'prediction_type'
  return all(scheduler[name] == known[name] for name in names)
