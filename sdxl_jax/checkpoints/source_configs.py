"""Finds what a source of weights is: published weights, or a run's workdir."""

import pathlib
from collections.abc import Collection

from ml_collections import config_dict

from sdxl_jax.checkpoints import orbax_checkpoint, run_sources
from sdxl_jax.models import from_config, latent_scaling
from sdxl_jax.weights import formats, hub, other_vae, read_options

Source = str | pathlib.Path


def check_source(
  folder: Source,
  options: read_options.ReadOptions = read_options.DEFAULT,
  nets: Collection[str] | None = None,
) -> None:
  """Raises FileNotFoundError for a path without weights.

  Weights of the Hugging Face hub are downloaded; see hub.locate.
  """
  hub.locate(folder, options, nets)
  if not formats.is_published(folder):
    orbax_checkpoint.find(folder)


def check_published(folder: Source, average: str) -> None:
  """Raises ValueError if an average is chosen of pretrained weights."""
  if average != 'ema':
    raise ValueError(
      f'average is {average!r}, but {folder} is not a workdir and has no '
      'averages to choose from: leave it out, or pass a workdir'
    )


def saved_config(folder: Source) -> config_dict.ConfigDict:
  """Loads the config of one checkpoint, or of a workdir's latest."""
  saved = orbax_checkpoint.read_config(orbax_checkpoint.find(folder))
  return config_dict.ConfigDict(saved)


def base_weights(source: Source | None) -> Source | None:
  """Returns the pretrained weights that a chain of runs started from.

  Of weights on the Hugging Face hub, the folder may have the tokenizers alone.
  """
  while source and not formats.is_published(source):
    source = saved_config(source).init_from
  return hub.resolve(source) if source else None


def with_latent_scaling(
  config: config_dict.ConfigDict, source: Source
) -> config_dict.ConfigDict:
  """Returns the config with latent scaling filled in from the source's VAE.

  Args:
    config: of a run; a vae.scaling_factor that is a number stays.
    source: pretrained weights, workdir, checkpoint; '': the VAE is new.

  Raises:
    ValueError: if a UNet is trained and neither config nor source has the
      scale of its latents.
  """
  # A patch VAE scales nothing; a number of the config is kept.
  if config.vae.kind != 'kl' or config.vae.scaling_factor is not None:
    return config
  if not source and config.task == 'autoencoder':
    return config  # the scale of a new VAE is measured in training
  if not source:
    raise ValueError(
      'config.vae.scaling_factor is None, and no config.init_from has one: '
      "set either of them; SDXL's is 0.13025"
    )
  if formats.is_published(source):
    options = formats.for_other(source, run_sources.reading(config))
    vae = other_vae.open_vae(source, None, options).config()
  else:
    vae = from_config.make_model(saved_config(source)).vae
  config = config.copy_and_resolve_references().unlock()
  scaling = {name: getattr(vae, name) for name in latent_scaling.FIELDS}
  config.vae.update(scaling)
  return config.lock()
