"""Nets read from a diffusers folder, and folders written from trees of ours."""

import dataclasses
import functools
import pathlib

from sdxl_jax import atomic_write
from sdxl_jax.weights import pretrained
from sdxl_jax.weights.diffusers import folder_reader, folder_writer


def load_all(folder):
  """Loads {name: (config, params)} of all nets of a folder."""
  model = folder_reader.open_model(folder)
  return {name: model.net(name).load() for name in model.loaders}


def load_config(folder, name, **fields):
  """Returns the config of a component, with some of its fields replaced."""
  net = folder_reader.open_net(pathlib.Path(folder) / name, name)
  return net.config(**fields)


def load_component(folder, name, variant=None, **fields):
  """Returns (config, params) of a component; see pretrained.Net.load."""
  net = folder_reader.open_net(pathlib.Path(folder) / name, name, variant)
  return net.load(**fields)


def net_of(name, config, params):
  """Makes the pretrained.Net of a tree of ours."""
  return pretrained.from_params(name, config, lambda target: params)


def save_all(source, target, components, index=None, **kwargs):
  """Writes a folder of trees of ours, with the rest of a source folder.

  `index`, a pretrained.ModelIndex, replaces that of the source.
  """
  model = folder_reader.open_model(source)
  loaders = {
    name: functools.partial(net_of, name, config, params)
    for name, (config, params) in components.items()
  }
  model = dataclasses.replace(
    model, loaders=loaders, index=index or model.index
  )
  with atomic_write.atomic_path(target, overwrite=False) as partial:
    folder_writer.save(partial, model, **kwargs)
