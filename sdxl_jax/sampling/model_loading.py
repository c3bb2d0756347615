"""Loads the models that the flags of a command name."""

from typing import Any

import jax

from sdxl_jax.checkpoints import loading
from sdxl_jax.sampling import model_flags, pipelines
from sdxl_jax.weights import formats, read_options, textual_inversion
from sdxl_jax.weights.lora import lora_file


def load_models(
  mesh: jax.sharding.Mesh, models: dict[str, Any], offload: bool
) -> tuple[pipelines.Pipeline, pipelines.Pipeline | None]:
  """Loads (base, refiner or None); a mesh of one device is left out.

  Args:
    mesh: whose devices share a batch.
    models: {flag: value} of model_flags.MODEL_OPTIONS, but lora_dir, whose
      files are among its LoRAs.
    offload: whether idle nets wait in the host's memory.

  Raises:
    FileNotFoundError, ValueError: for weights that cannot be read.
  """
  mesh = mesh if mesh.size > 1 else None
  options = dict(models)
  weights, refiner = options.pop('weights'), options.pop('refiner')
  # Find faults in all paths before one of them takes minutes to load.
  # What is on the Hugging Face hub is downloaded now.
  vae, reading = options['vae'], read_options.ReadOptions(options['variant'])
  loading.check_source(weights, reading, pipelines.needed_nets(vae))
  for other, nets in ((refiner, None), (vae, ('vae',))):
    if other is not None:
      loading.check_source(other, formats.for_other(other, reading), nets)
  for spec in options['lora']:
    lora_file.find(lora_file.parse(spec)[0])
  for spec in options['embedding']:
    textual_inversion.find(textual_inversion.parse(spec)[1])
  base = load_expert(weights, mesh, options | {'offload': offload})
  if refiner is None:
    return base, None
  shared = {name: options[name] for name in model_flags.REFINER_OPTIONS}
  variant = shared['variant']
  if variant and not formats.has_variant(refiner, variant):
    shared['variant'] = None
    print(f'note: {refiner} has no variant {variant!r}: it is read without')
  # Only a workdir has averages to choose from.
  if not formats.is_published(refiner):
    shared['average'] = options['average']
  return base, load_expert(refiner, mesh, shared | {'offload': offload})


def load_expert(
  weights: str, mesh: jax.sharding.Mesh | None, options: dict[str, Any]
) -> pipelines.Pipeline:
  """Loads a base or a refiner, and prints how its weights were read.

  Args:
    weights: path of it.
    mesh: whose devices share a batch, or None.
    options: {flag: value} of model_flags.MODEL_OPTIONS, and offload.
  """
  print(f'loading {weights}', flush=True)
  names = model_flags.LOAD_OPTIONS
  settings = {names.get(name, name): x for name, x in options.items()}
  pipeline = pipelines.load(weights, mesh=mesh, **settings)
  for note in pipeline.notes:
    print(f'note: {note}')
  return pipeline
