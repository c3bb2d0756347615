"""Checks that weights and a run, or its nets, fit each other."""

import dataclasses
import pathlib
from typing import Any

from sdxl_jax.models import from_config
from sdxl_jax.weights import pretrained, read_options
from sdxl_jax.weights.diffusers import edm_config

Source = str | pathlib.Path


def check_run(folder: Source, options: read_options.ReadOptions) -> None:
  """Raises ValueError if a user decides what the config of a run does."""
  for name in ('prediction', 'zero_snr'):
    if getattr(options, name) is not None:
      raise ValueError(
        f'{name} is {getattr(options, name)!r}, but {folder} is a workdir, '
        'whose config decides what its UNet predicts: leave it out'
      )


def check_timesteps(model: pretrained.Model) -> None:
  """Raises ValueError for a UNet that runs cannot be trained from."""
  if edm_config.is_edm(model.scheduler):
    raise ValueError(
      f'{model.path} takes continuous noise levels (EDM), as Playground v2.5 '
      'and CosXL do, and training is implemented for timesteps alone: such a '
      'model can be sampled, not trained; start from other weights'
    )


def check_same(
  name: str, config: Any, saved: Any, location: str | pathlib.Path
) -> None:
  """Raises ValueError if a saved net has another config.

  Args:
    name: of the net.
    config: dataclass of the net that is wanted.
    saved: dataclass of the same type.
    location: of the saved net, for the error.
  """
  if type(config) is not type(saved):
    raise ValueError(
      f'{location} has a {name} of another kind, {type(saved).__name__}, than '
      f'config.{name}, {type(config).__name__}: use other weights'
    )
  rows = []
  config, saved = from_config.comparable(config), from_config.comparable(saved)
  for field in dataclasses.fields(config):
    here, there = getattr(config, field.name), getattr(saved, field.name)
    if here != there:
      rows.append(f'{field.name}: {here} here, {there} there')
  if rows:
    raise ValueError(
      f'{location} has another {name} than config.{name}:\n  '
      + '\n  '.join(rows)
      + '\nChange these fields of the config, or use other weights'
    )
