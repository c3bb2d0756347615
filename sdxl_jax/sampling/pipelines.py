"""Loads all that sampling needs, from pretrained weights or a run's workdir."""

import dataclasses
import os
import pathlib
from concurrent import futures
from typing import Any

import jax

from sdxl_jax.checkpoints import loading, quantized_nets, run_words
from sdxl_jax.distributed import gpu_memory, sharding
from sdxl_jax.models import sdxl
from sdxl_jax.programs import compile_progress, program_cache
from sdxl_jax.sampling import (
  control_specs,
  dtype_choice,
  learned_words,
  load_options,
  offload_choice,
  quantized_loading,
  sources,
)
from sdxl_jax.sampling.load_options import LoadOptions
from sdxl_jax.text import chunking, tokenizer
from sdxl_jax.weights import (
  description,
  net_loading,
  pretrained,
  textual_inversion,
)
from sdxl_jax.weights.diffusers import scheduler_config
from sdxl_jax.weights.lora import lora_file, merge

BESIDE = ('lora', 'words')  # what is trained beside nets that stay as they are


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
  # Side in px of tiles to decode in where none is set, see offload_choice.
  tile: int | None = None
  # Of each text at least, as in training: config.max_token_length / 75.
  text_chunks: int = 1
  # Of the control images of `generate`, in their order.
  controls: tuple[control_specs.ControlSpec, ...] = ()
  notes: tuple[str, ...] = ()  # lines for the user on how weights were read

  def on_device(self, *names: str) -> dict[str, Any]:
    """Returns the parameters of some nets, and those beside them, to run them.

    The parameters of offloaded nets are copied to the device now: drop them
    after use, and wait for the result before other nets are fetched.
    """
    params = {name: self.params.get(name, {}) for name in (*names, *BESIDE)}
    return sharding.fetch(params)


def load(
  folder: str | os.PathLike[str],
  dtype: str = 'auto',
  average: str = 'ema',
  mesh: jax.sharding.Mesh | None = None,
  **options: Any,
) -> Pipeline:
  """Loads the Pipeline of pretrained weights or of a run's workdir.

  From here on compiled programs are kept, see programs/program_cache.py, and
  those that take long are shown.

  Args:
    folder: diffusers folder, single file or orbax export, or their name on the
      Hugging Face hub (owner/name); workdir, or one of its checkpoints.
    dtype: see load_options.LoadOptions.
    average: see load_options.LoadOptions.
    mesh: whose devices share a batch; the default device without it.
    **options: the other fields of load_options.LoadOptions.

  Raises:
    FileNotFoundError: where there are no weights.
    TypeError: for an option that does not exist.
    ValueError: for weights that cannot be read, or do not fit each other.
  """
  program_cache.turn_on()
  compile_progress.show()
  chosen, notes = resolve({'dtype': dtype, 'average': average} | options, mesh)
  source, tile = sources.open_source(pathlib.Path(folder), chosen), None
  if chosen.offload == 'auto':
    choice = offload_choice.choose(
      [source.model],
      offload_choice.Workload(source.size),
      offload_choice.measure(mesh),
    )
    chosen = dataclasses.replace(chosen, offload=choice.offloaded[0])
    notes, tile = (*notes, *choice.notes), choice.tile
  load_source = load_pretrained if source.opened else load_run
  pipeline = load_source(source, chosen, mesh)
  pipeline = dataclasses.replace(
    pipeline, tile=tile, notes=notes + pipeline.notes
  )
  pipeline = with_controlnets(pipeline, source, chosen)
  return with_words(pipeline, source, chosen)


def with_controlnets(
  pipeline: Pipeline, source: sources.Source, options: LoadOptions
) -> Pipeline:
  """Returns a pipeline with the parameters of its ControlNets."""
  if not source.controlnets:
    return pipeline
  params = load_nets(source.controlnets, options, pipeline.mesh)
  return dataclasses.replace(
    pipeline,
    params=pipeline.params | params,
    controls=tuple(map(control_specs.parse, options.controlnets)),
  )


def with_loras(pipeline: Pipeline, options: LoadOptions) -> Pipeline:
  """Returns a pipeline with the changes of LoRA files."""
  if not options.loras:
    return pipeline
  loras = lora_file.load_all(
    pipeline.params, options.loras, options.skip_unsupported
  )
  return dataclasses.replace(
    pipeline,
    params=merge.merge(pipeline.params, loras),
    notes=pipeline.notes + lora_file.notes(options.loras, loras),
  )


def resolve(
  options: dict[str, Any], mesh: jax.sharding.Mesh | None
) -> tuple[LoadOptions, tuple[str, ...]]:
  """Makes the LoadOptions of {name: value}, with the types for the devices.

  Returns:
    The options, and lines for the user on what was chosen.

  Raises:
    TypeError: for an option that does not exist.
    ValueError: for a value that does not exist, or overflows.
  """
  gpu_memory.enlarge()
  chosen = load_options.parse(options)
  dtypes, notes = dtype_choice.resolve(
    chosen.dtype, chosen.vae_dtype, dtype_choice.device_of(mesh)
  )
  dtype_choice.check_vae(dtypes['vae_dtype'], chosen.vae)
  return dataclasses.replace(chosen, **dtypes), notes


def with_words(
  pipeline: Pipeline, source: sources.Source, options: LoadOptions
) -> Pipeline:
  """Returns a pipeline with the words of its run, and of files."""
  mesh, of_run = pipeline.mesh, []
  if not source.opened:
    of_run = run_words.load(source.path, source.config, mesh, options.average)
  of_files = textual_inversion.load(
    options.embeddings, learned_words.widths_of(pipeline.model)
  )
  for words in filter(None, (of_run, of_files)):
    parts = [getattr(pipeline, name) for name in learned_words.Parts._fields]
    parts = learned_words.add(
      learned_words.Parts(*parts),
      words,
      lambda name: loading.make_sharding_fn(mesh, options.memory(name)),
    )
    pipeline = dataclasses.replace(pipeline, **parts._asdict())
  return pipeline


def load_run(
  source: sources.Source, options: LoadOptions, mesh: jax.sharding.Mesh | None
) -> Pipeline:
  """Loads the Pipeline of a run's workdir, see `load`."""
  model, params, notes = source.model, {}, ()
  names = [
    name
    for name in model.configs
    if name not in source.controlnets
    and not (source.with_vae and name == 'vae')
  ]
  # What is quantised at the end waits in host memory.
  quantized = quantized_nets.names(model)
  reading = dataclasses.replace(
    options, offload=(*options.offloaded, *quantized)
  )
  for memory, group in reading.by_memory(names).items():
    params |= loading.load_params(
      source.path,
      quantized_nets.unquantized(model),
      group,
      mesh,
      options.average,
      memory,
      options.reading,
    )
  if source.with_vae is not None:
    vae = {'vae': source.with_vae.net('vae')}
    params |= load_nets(vae, options, mesh)
    notes = source.with_vae.notes
  pipeline = make_pipeline(source.config, model, params, mesh)
  pipeline = dataclasses.replace(pipeline, notes=pipeline.notes + notes)
  pipeline = with_loras(pipeline, options)
  params = quantized_nets.quantize(
    model,
    pipeline.params,
    lambda name: loading.make_sharding_fn(mesh, options.memory(name)),
  )
  return dataclasses.replace(pipeline, params=params)


def load_nets(
  nets: dict[str, pretrained.Net],
  options: LoadOptions,
  mesh: jax.sharding.Mesh | None,
) -> dict[str, Any]:
  """Loads {net: parameters} of some nets into the memory of the options."""
  loaded = net_loading.load_all(
    nets,
    {n: loading.make_sharding_fn(mesh, options.memory(n)) for n in nets},
    {n: sources.runtime_fields_of(n, options) for n in nets},
  )
  return {name: params for name, (_, params) in loaded.items()}


def load_pretrained(
  source: sources.Source, options: LoadOptions, mesh: jax.sharding.Mesh | None
) -> Pipeline:
  """Loads the Pipeline of pretrained weights, see `load`."""
  notes = ()
  is_merged = quantized_nets.names(source.model) and options.loras
  if is_merged:
    source, notes = quantized_loading.with_loras(source, options)
  model, opened = source.model, source.opened
  # Importing the tokenizers' library takes seconds; nets are read meanwhile.
  with futures.ThreadPoolExecutor(1) as thread:
    tokenize = thread.submit(
      tokenizer.load, source.path, opened.added_tokens, model.text.vocab_sizes
    )
    nets = {name: opened.net(name) for name in opened.index.components}
    params = load_nets(nets, options, mesh)
  pipeline = Pipeline(
    model=model,
    params=params,
    tokenize=tokenize.result(),
    scheduler=opened.scheduler,
    force_zeros=opened.index.force_zeros,
    size=source.size,
    mesh=mesh,
    notes=description.describe_reading(opened) + notes,
  )
  return pipeline if is_merged else with_loras(pipeline, options)


def make_pipeline(
  config: Any,
  model: sdxl.SDXL,
  params: dict[str, Any],
  mesh: jax.sharding.Mesh | None = None,
) -> Pipeline:
  """Makes the Pipeline of a training config's model and its parameters."""
  return Pipeline(
    model=model,
    params=params,
    tokenize=run_words.load_tokenizer(config, 'words' in params),
    scheduler=scheduler_config.for_run(model.schedule),
    force_zeros=config.uncond == 'zeros',
    size=tuple(config.samples.size),
    mesh=mesh,
    buckets=tuple(map(tuple, config.data.buckets)),
    zoom=config.samples.get('zoom', 1),
    # Configs of older runs have no such field.
    text_chunks=chunking.count_for(config.get('max_token_length', 75)),
  )
