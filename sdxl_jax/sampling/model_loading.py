"""Loads the models that the flags of a command name."""

from collections.abc import Callable
from typing import Any

import jax

from sdxl_jax.checkpoints import source_configs
from sdxl_jax.distributed import device_mesh, gpu_memory
from sdxl_jax.sampling import (
  control_specs,
  dtype_choice,
  model_flags,
  offload_choice,
  pairs,
  pipelines,
  sources,
)
from sdxl_jax.weights import (
  formats,
  other_controlnets,
  read_options,
  textual_inversion,
)
from sdxl_jax.weights.lora import lora_file


def prepare(
  models: dict[str, Any], count: int | None = None
) -> tuple[jax.sharding.Mesh, dict[str, Any]]:
  """Finds the devices that sample, and the types that they compute in.

  Args:
    models: {flag: value} of model_flags.MODEL_OPTIONS.
    count: of devices at most; None: all of this process.

  Returns:
    (mesh, models with the types that a PNG holds), of which lines are printed.

  Raises:
    ValueError: for an unknown type.
  """
  gpu_memory.enlarge()
  mesh = device_mesh.make_mesh(devices=jax.local_devices()[:count])
  dtypes, notes = dtype_choice.resolve(
    models['dtype'], models['vae_dtype'], dtype_choice.device_of(mesh)
  )
  for note in notes:
    print(note)
  return mesh, models | dtypes


def load_models(
  mesh: jax.sharding.Mesh,
  models: dict[str, Any],
  offload: str | bool,
  workload_of: Callable = offload_choice.Workload,
) -> tuple[pipelines.Pipeline, pipelines.Pipeline | None]:
  """Loads (base, refiner or None); a mesh of one device is left out.

  Args:
    mesh: whose devices share a batch.
    models: {flag: value} of model_flags.MODEL_OPTIONS, but lora_dir, whose
      files are among its LoRAs.
    offload: whether idle nets wait in the host's memory; 'auto': those that do
      not fit the device.
    workload_of: see pairs.choose.

  Raises:
    FileNotFoundError, ValueError: for weights that cannot be read.
  """
  mesh = mesh if mesh.size > 1 else None
  check_paths(models)
  experts = settings_of(models)
  # Choose where the nets of both are held, then load them.
  choice = None
  if offload == 'auto':
    choice = pairs.choose(experts, workload_of, mesh)
    for note in choice.notes:
      print(f'note: {note}')
  experts = [(path, {'offload': offload} | fields) for path, fields in experts]
  loaded = [
    load_expert(path, mesh, fields)
    for path, fields in pairs.with_offload(experts, choice)
  ]
  if choice is not None:
    loaded[0] = pairs.with_choice(loaded[0], choice)
  return loaded[0], loaded[1] if len(loaded) > 1 else None


def check_paths(models: dict[str, Any]) -> None:
  """Finds faults in all paths before one of them takes minutes to load.

  What is on the Hugging Face hub is downloaded now.

  Raises:
    FileNotFoundError, ValueError: for a path without weights.
  """
  vae, refiner = models['vae'], models['refiner']
  reading = read_options.ReadOptions(models['variant'])
  source_configs.check_source(
    models['weights'], reading, sources.needed_nets(vae)
  )
  for other, nets in ((refiner, None), (vae, ('vae',))):
    if other is not None:
      source_configs.check_source(
        other, formats.for_other(other, reading), nets
      )
  for spec in models['controlnet']:
    other_controlnets.open_net(control_specs.parse(spec).path, reading)
  for spec in models['lora']:
    lora_file.find(lora_file.parse(spec)[0])
  for spec in models['embedding']:
    textual_inversion.find(textual_inversion.parse(spec)[1])


def settings_of(models: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """Returns (path, options of pipelines.load) of the base, and of a refiner."""
  options = dict(models)
  weights, refiner = options.pop('weights'), options.pop('refiner')
  experts = [(weights, renamed(options))]
  if refiner is None:
    return experts
  shared = {name: options[name] for name in model_flags.REFINER_OPTIONS}
  variant = shared['variant']
  if variant and not formats.has_variant(refiner, variant):
    shared['variant'] = None
    print(f'note: {refiner} has no variant {variant!r}: it is read without')
  # Only a workdir has averages to choose from.
  if not formats.is_published(refiner):
    shared['average'] = options['average']
  return [*experts, (refiner, renamed(shared))]


def renamed(options: dict[str, Any]) -> dict[str, Any]:
  """Returns {flag: value} under the names that `pipelines.load` has."""
  names = model_flags.LOAD_OPTIONS
  return {names.get(name, name): x for name, x in options.items()}


def load_expert(
  weights: str, mesh: jax.sharding.Mesh | None, options: dict[str, Any]
) -> pipelines.Pipeline:
  """Loads a base or a refiner, and prints how its weights were read.

  Args:
    weights: path of it.
    mesh: whose devices share a batch, or None.
    options: see pipelines.load.
  """
  print(f'loading {weights}', flush=True)
  pipeline = pipelines.load(weights, mesh=mesh, **options)
  for note in pipeline.notes:
    print(f'note: {note}')
  return pipeline
