"""Replaces the autoencoder of a model by one from another path."""

import dataclasses
import pathlib
from typing import Any

from sdxl_jax.models import latent_scaling, tiny_vae
from sdxl_jax.weights import formats, hub, pretrained, read_options


def replace(
  model: pretrained.Model,
  path: str | pathlib.Path | None,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Model:
  """Returns a model whose autoencoder is the one at a path.

  Args:
    model: whose latents the autoencoder is to decode.
    path: folder of an autoencoder or of a model, or a file of either; None: the
      model stays as it is.
    options: those of the model.

  Raises:
    FileNotFoundError: if the path holds no autoencoder.
    ValueError: if its latents have another number of channels.
  """
  if path is None:
    return model
  net = open_vae(path, model, options)
  ours = net.config()
  check_channels(ours, model.net('unet').config().out_channels, path)
  notes = [f'vae: {path}']
  try:
    theirs = model.net('vae').config()
  except FileNotFoundError:  # a model without an autoencoder
    theirs = ours
  # The latents of a TAESD are those of SDXL, scaled already.
  is_scaled = isinstance(ours, tiny_vae.TinyConfig) and not theirs.latents_mean
  for name in () if is_scaled else latent_scaling.FIELDS:
    here, there = getattr(ours, name), getattr(theirs, name)
    if here != there:
      notes.append(
        f'{name} of the latents is {here} by {path}, and {there} by '
        f'{model.path}'
      )
  return dataclasses.replace(
    model,
    loaders=model.loaders | {'vae': lambda: net},
    notes=model.notes + tuple(notes),
  )


def open_vae(
  path: str | pathlib.Path,
  model: pretrained.Model | None = None,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> pretrained.Net:
  """Opens the autoencoder at a path.

  Args:
    path: folder of an autoencoder or of a model, or a file of either; or their
      name on the Hugging Face hub.
    model: whose autoencoder's config completes a file without one, if the
      shapes are the same.
    options: of the model; its variant is read where the path has it.

  Raises:
    FileNotFoundError: if the path holds no autoencoder.
    ValueError: if it is broken.
  """
  options = formats.for_other(path, options)
  path, options = hub.locate(path, options, ('vae',))
  try:
    return net_of(formats.open_model(path, model, options))
  except ValueError as error:
    if model is None or pathlib.Path(path).is_dir():
      raise  # a folder has configs of its own
    # One of other sizes than the model's has published sizes.
    try:
      return net_of(formats.open_model(path, None, options))
    except ValueError:
      raise error from None


def net_of(model: pretrained.Model) -> pretrained.Net:
  """Opens the autoencoder of a model, or raises FileNotFoundError."""
  if 'vae' not in model.loaders:
    raise FileNotFoundError(
      f'{model.path} has {" and ".join(model.loaders)}, and no autoencoder: '
      'pass the folder or the file of one as --vae'
    )
  return model.net('vae')


def check_channels(
  config: Any, channels: int, path: str | pathlib.Path
) -> None:
  """Raises ValueError for an autoencoder of other latents than the UNet's.

  Args:
    config: of the autoencoder.
    channels: of the UNet's output.
    path: of the autoencoder, for the error.
  """
  if config.latent_channels != channels:
    raise ValueError(
      f'the latents of {path} have {config.latent_channels} channels, and '
      f'those of the UNet {channels}: it is the autoencoder of another kind of '
      'model; use one for SDXL'
    )
