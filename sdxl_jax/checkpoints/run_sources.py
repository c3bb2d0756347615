"""Where the config of a run has its nets from, and how they are read."""

from collections.abc import Collection

from ml_collections import config_dict

from sdxl_jax.weights import read_options


def by_source(
  config: config_dict.ConfigDict, names: Collection[str]
) -> dict[str, list[str]]:
  """Groups nets by the path that they are loaded from: {path: names}."""
  sources = {}
  for name in names:
    source = vae_source(config) if name == 'vae' else config.init_from
    sources.setdefault(source or '', []).append(name)
  return sources


def vae_source(config: config_dict.ConfigDict) -> str:
  """Returns the path that the autoencoder is loaded from; '': it is new."""
  if 'vae' in config.get('from_scratch', ()):
    return ''
  # Configs of older runs have no such field.
  return config.get('init_vae', '') or config.init_from


def reading(
  config: config_dict.ConfigDict,
  options: read_options.ReadOptions = read_options.DEFAULT,
) -> read_options.ReadOptions:
  """Returns how the weights that a run starts from are read.

  Args:
    config: of the run; its schedule has what the UNet predicts.
    options: of the command, whose variant comes before the config's.
  """
  variant = options.variant or config.get('init_variant', '') or None
  return read_options.ReadOptions(
    variant=variant,
    prediction=config.schedule.prediction,
    skip_unsupported=options.skip_unsupported,
  )
