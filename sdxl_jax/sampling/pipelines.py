"""Loads all that sampling needs, from pretrained weights or a run's workdir."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from sdxl_jax.checkpoints import export, loading, source_checks
from sdxl_jax.distributed import sharding
from sdxl_jax.models import from_config, sdxl, text_encoder
from sdxl_jax.sampling import learned_words
from sdxl_jax.text import chunking, tokenizer
from sdxl_jax.weights import (
  description,
  formats,
  hub,
  other_vae,
  pretrained,
  read_options,
)
from sdxl_jax.weights.diffusers import scheduler_config
from sdxl_jax.weights.lora import lora_file, merge

DTYPES = 'float32', 'bfloat16'


@dataclasses.dataclass(frozen=True)
class Pipeline:
  """All that sampling needs; see `load`."""

  model: sdxl.SDXL
  params: dict[str, Any]  # {'unet', 'vae', 'text_encoder', 'text_encoder_2'}
  tokenize: tokenizer.Tokenizer
  scheduler: dict[str, Any]  # as in scheduler_config.json
  force_zeros: bool  # without negative prompt: zeros, not an encoded ''
  size: tuple[int, int]  # (height, width) in px where none is set
  mesh: jax.sharding.Mesh | None = None  # whose devices share a batch
  # (height, width)s in px that a workdir was trained on.
  buckets: tuple[tuple[int, int], ...] = ()
  zoom: int = 1  # whole factor by which images are enlarged when written
  # Of each text at least, as in training: config.max_token_length / 75.
  text_chunks: int = 1
  notes: tuple[str, ...] = ()  # lines for the user on how weights were read

  def on_device(self, *names: str) -> dict[str, Any]:
    """Returns the parameters of some nets, and low-rank factors, to run them.

    The parameters of an offloaded pipeline are copied to the device now: drop
    them after use, and wait for the result before other nets are fetched.
    """
    params = {name: self.params.get(name, {}) for name in (*names, 'lora')}
    return sharding.fetch(params)


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """How `load` reads weights and holds them.

  The options of `read_options.ReadOptions` concern pretrained weights.
  """

  # Of computation, one of DTYPES; parameters are held in it too.
  dtype: str = 'float32'
  # Which parameters of a workdir: 'ema'; 'none', the last ones; or the width of
  # an EMA reconstructed from snapshots, such as '0.05'.
  average: str = 'ema'
  # Files to merge, each as 'FILE' or 'FILE:WEIGHT'.
  loras: Sequence[str] = ()
  vae_dtype: str = 'float32'  # of computation and storage of the autoencoder
  attention: str = 'auto'  # see models/attention.py; 'auto': the fastest here
  offload: bool = False  # parameters of idle nets stay in the host's memory
  vae: str | os.PathLike[str] | None = None  # weights of another autoencoder
  # Files of textual inversion, each as 'FILE' or 'NAME=FILE'.
  embeddings: Sequence[str] = ()
  variant: str | None = None  # see read_options.ReadOptions
  prediction: str | None = None
  zero_snr: bool | None = None
  skip_unsupported: bool = False

  @property
  def reading(self) -> read_options.ReadOptions:
    """What concerns the readers of weights."""
    names = [f.name for f in dataclasses.fields(read_options.ReadOptions)]
    return read_options.ReadOptions(**{n: getattr(self, n) for n in names})


def load(
  folder: str | os.PathLike[str],
  dtype: str = 'float32',
  average: str = 'ema',
  mesh: jax.sharding.Mesh | None = None,
  **options: Any,
) -> Pipeline:
  """Loads the Pipeline of pretrained weights or of a run's workdir.

  Args:
    folder: diffusers folder, single file or orbax export, or their name on the
      Hugging Face hub (owner/name); workdir, or one of its checkpoints.
    dtype: see LoadOptions.
    average: see LoadOptions.
    mesh: whose devices share a batch; the default device without it.
    **options: the other fields of LoadOptions.

  Raises:
    FileNotFoundError: where there are no weights.
    TypeError: for an option that does not exist.
    ValueError: for weights that cannot be read, or do not fit each other.
  """
  folder = pathlib.Path(folder)
  chosen = parse_options({'dtype': dtype, 'average': average} | options)
  if formats.is_published(folder):
    loading.check_published(folder, average)
    pipeline = load_pretrained(folder, chosen, mesh)
  else:
    pipeline = load_run(folder, chosen, mesh)
  if chosen.embeddings:
    pipeline = with_words(pipeline, chosen)
  if not chosen.loras:
    return pipeline
  loras = lora_file.load_all(
    pipeline.params, chosen.loras, chosen.skip_unsupported
  )
  return dataclasses.replace(
    pipeline,
    params=merge.merge(pipeline.params, loras),
    notes=pipeline.notes + lora_file.notes(chosen.loras, loras),
  )


def with_words(pipeline: Pipeline, options: LoadOptions) -> Pipeline:
  """Returns a pipeline with the words that textual inversion learned."""
  parts = [getattr(pipeline, name) for name in learned_words.Parts._fields]
  parts = learned_words.add(
    learned_words.Parts(*parts),
    options.embeddings,
    loading.make_sharding_fn(pipeline.mesh, memory_of(options)),
  )
  return dataclasses.replace(pipeline, **parts._asdict())


def parse_options(options: dict[str, Any]) -> LoadOptions:
  """Makes the LoadOptions of {name: value}.

  Raises:
    TypeError: for an option that does not exist.
  """
  known = [field.name for field in dataclasses.fields(LoadOptions)]
  for name in options:
    if name not in known:
      raise TypeError(f'load has no option {name!r}; there are {known}')
  return LoadOptions(**options)


def load_run(
  folder: pathlib.Path, options: LoadOptions, mesh: jax.sharding.Mesh | None
) -> Pipeline:
  """Loads the Pipeline of a run's workdir, see `load`."""
  source_checks.check_run(folder, options.reading)
  config = loading.saved_config(folder)
  model = from_config.make_model(config)
  model = model.replace_each(
    {name: runtime_fields_of(name, options) for name in model.configs}
  )
  names = [
    name for name in model.configs if not (options.vae and name == 'vae')
  ]
  params = loading.load_params(
    folder,
    model,
    names,
    mesh,
    options.average,
    memory_of(options),
    options.reading,
  )
  pipeline = make_pipeline(config, model, params, mesh)
  if options.vae is None:
    return pipeline
  run = export.open_run(folder, options=options.reading)
  return with_vae(pipeline, run, options)


def with_vae(
  pipeline: Pipeline, run: pretrained.Model, options: LoadOptions
) -> Pipeline:
  """Returns a run's Pipeline with the autoencoder of the options."""
  changed = other_vae.replace(run, options.vae, options.reading)
  config, params = changed.net('vae').load(
    loading.make_sharding_fn(pipeline.mesh, memory_of(options)),
    **runtime_fields_of('vae', options),
  )
  return dataclasses.replace(
    pipeline,
    model=dataclasses.replace(pipeline.model, vae=config),
    params=pipeline.params | {'vae': params},
    notes=pipeline.notes + changed.notes,
  )


def memory_of(options: LoadOptions) -> str:
  """Returns the kind of memory that parameters are kept in."""
  return 'pinned_host' if options.offload else 'device'


def runtime_fields_of(name: str, options: LoadOptions) -> dict[str, Any]:
  """Returns `runtime_fields` of a net by the options."""
  return runtime_fields(
    name, options.dtype, options.vae_dtype, options.attention
  )


def runtime_fields(
  name: str, dtype: str, vae_dtype: str, attention: str
) -> dict[str, Any]:
  """Returns the fields of a net's config that decide how sampling runs it."""
  dtype = vae_dtype if name == 'vae' else dtype
  fields = {'dtype': dtype, 'param_dtype': dtype}
  if name != 'unet':
    return fields
  if attention == 'auto':
    attention = from_config.default_attention()
  return fields | {'attention': attention}


def load_pretrained(
  path: pathlib.Path, options: LoadOptions, mesh: jax.sharding.Mesh | None
) -> Pipeline:
  """Loads the Pipeline of pretrained weights, see `load`."""
  path, reading = hub.locate(path, options.reading, needed_nets(options.vae))
  pretrained_model = formats.open_model(path, options=reading)
  pretrained_model = other_vae.replace(
    pretrained_model, options.vae, options.reading
  )
  pretrained.check_complete(pretrained_model)
  configs, params = {'text_encoder': None}, {}
  for name in pretrained_model.index.components:
    configs[name], params[name] = pretrained_model.net(name).load(
      loading.make_sharding_fn(mesh, memory_of(options)),
      **runtime_fields_of(name, options),
    )
  schedule, _ = scheduler_config.read(pretrained_model.scheduler, 'euler')
  model = sdxl.SDXL(
    unet=configs['unet'],
    vae=configs['vae'],
    text=text_encoder.TextEncoder(
      configs['text_encoder'], configs['text_encoder_2']
    ),
    schedule=schedule,
    refiner=pretrained_model.index.refiner,
  )
  height, width = pretrained_model.sample_size
  return Pipeline(
    model=model,
    params=params,
    tokenize=tokenizer.load(
      path, pretrained_model.added_tokens, model.text.vocab_sizes
    ),
    scheduler=pretrained_model.scheduler,
    force_zeros=pretrained_model.index.force_zeros,
    size=(height * model.vae.downscale, width * model.vae.downscale),
    mesh=mesh,
    notes=description.describe_reading(pretrained_model),
  )


def needed_nets(vae: Any) -> list[str]:
  """Returns the nets that are read of weights beside another autoencoder."""
  return [n for n in pretrained.COMPONENTS if n != 'vae' or vae is None]


def make_pipeline(
  config: Any,
  model: sdxl.SDXL,
  params: dict[str, Any],
  mesh: jax.sharding.Mesh | None = None,
) -> Pipeline:
  """Makes the Pipeline of a training config's model and its parameters."""
  base = loading.base_weights(config.init_from)
  added = formats.added_tokens(base)
  return Pipeline(
    model=model,
    params=params,
    tokenize=tokenizer.load(base, added, model.text.vocab_sizes),
    scheduler=scheduler_config.for_run(model.schedule),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
    buckets=tuple(map(tuple, config.data.buckets)),
    zoom=config.samples.get('zoom', 1),
    # Configs of older runs have no such field.
    text_chunks=chunking.count_for(config.get('max_token_length', 75)),
  )
