"""Opens weights for sampling: the configs of their nets, no parameters."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from sdxl_jax.checkpoints import export, source_checks, source_configs
from sdxl_jax.models import from_config, sdxl, text_encoder
from sdxl_jax.sampling import control_specs
from sdxl_jax.sampling.load_options import LoadOptions, runtime_fields
from sdxl_jax.weights import (
  formats,
  hub,
  other_controlnets,
  other_vae,
  pretrained,
)
from sdxl_jax.weights.diffusers import scheduler_config


class Source(NamedTuple):
  """Weights that are opened."""

  path: pathlib.Path
  model: sdxl.SDXL  # as it is sampled
  size: tuple[int, int]  # (height, width) in px where none is set
  opened: pretrained.Model | None = None  # pretrained weights; None: a run
  config: Any = None  # of a run
  # A run's nets with the autoencoder of the options, where they have one.
  with_vae: pretrained.Model | None = None
  # {name in SDXL: net} of the ControlNets of the options.
  controlnets: dict[str, pretrained.Net] = {}


def open_source(path: pathlib.Path, options: LoadOptions) -> Source:
  """Opens pretrained weights, or a run's workdir.

  Args:
    path: see pipelines.load.
    options: whose types are resolved.

  Raises:
    FileNotFoundError: where there are no weights.
    ValueError: for weights that cannot be read, or do not fit each other.
  """
  if formats.is_published(path):
    source_configs.check_published(path, options.average)
    return with_controlnets(open_pretrained(path, options), options)
  return with_controlnets(open_run(path, options), options)


def with_controlnets(source: Source, options: LoadOptions) -> Source:
  """Returns a source with the ControlNets of the options.

  Raises:
    FileNotFoundError: for a path without a ControlNet.
    ValueError: for one of another model.
  """
  specs = [control_specs.parse(text) for text in options.controlnets]
  if not specs:
    return source
  nets = dict(
    zip(
      control_specs.names(specs),
      other_controlnets.open_all(
        control_specs.paths(specs), source.model, options.reading
      ),
    )
  )
  configs = tuple(
    net.config(**runtime_fields_of(name, options)) for name, net in nets.items()
  )
  model = dataclasses.replace(source.model, controlnets=configs)
  return source._replace(model=model, controlnets=nets)


def open_pretrained(path: pathlib.Path, options: LoadOptions) -> Source:
  """Opens pretrained weights, see `open_source`."""
  path, reading = hub.locate(path, options.reading, needed_nets(options.vae))
  opened = formats.open_model(path, options=reading)
  opened = other_vae.replace(opened, options.vae, options.reading)
  pretrained.check_complete(opened)
  configs = {
    name: opened.net(name).config(**runtime_fields_of(name, options))
    for name in opened.index.components
  }
  schedule, _ = scheduler_config.read(opened.scheduler, 'euler')
  model = sdxl.SDXL(
    unet=configs['unet'],
    vae=configs['vae'],
    text=text_encoder.TextEncoder(
      configs.get('text_encoder'), configs['text_encoder_2']
    ),
    schedule=schedule,
    refiner=opened.index.refiner,
  )
  height, width = opened.sample_size
  size = height * model.vae.downscale, width * model.vae.downscale
  return Source(path, model, size, opened)


def needed_nets(vae: Any) -> list[str]:
  """Returns the nets that are read of weights beside another autoencoder."""
  return [n for n in pretrained.COMPONENTS if n != 'vae' or vae is None]


def open_run(path: pathlib.Path, options: LoadOptions) -> Source:
  """Opens a run's workdir, see `open_source`."""
  source_checks.check_run(path, options.reading)
  config = source_configs.saved_config(path)
  model = from_config.make_model(config)
  model = model.replace_each(
    {name: runtime_fields_of(name, options) for name in model.configs}
  )
  size = tuple(config.samples.size)
  if options.vae is None:
    return Source(path, model, size, config=config)
  run = export.open_run(path, options=options.reading)
  changed = other_vae.replace(run, options.vae, options.reading)
  vae = changed.net('vae').config(**runtime_fields_of('vae', options))
  model = dataclasses.replace(model, vae=vae)
  return Source(path, model, size, config=config, with_vae=changed)


def runtime_fields_of(name: str, options: LoadOptions) -> dict[str, Any]:
  """Returns `runtime_fields` of a net by the options."""
  return runtime_fields(
    name,
    options.dtype,
    options.vae_dtype,
    options.attention,
    options.weights_dtype,
  )
