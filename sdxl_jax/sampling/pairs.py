"""Loads a base and a refiner that share the memory of devices and host."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from sdxl_jax.distributed import gpu_memory
from sdxl_jax.sampling import offload_choice, pipelines, sources

Path = str | os.PathLike[str]
# (size of the base in px) -> the most that is sampled at once.
WorkloadOf = Callable[[tuple[int, int]], offload_choice.Workload]


def load_pair(
  weights: Path,
  refiner: Path,
  mesh: jax.sharding.Mesh | None = None,
  refiner_options: dict[str, Any] | None = None,
  workload_of: WorkloadOf = offload_choice.Workload,
  **options: Any,
) -> tuple[pipelines.Pipeline, pipelines.Pipeline]:
  """Loads a base and its refiner, some of their nets in host memory if needed.

  Loaded one after the other, the first would take what the second needs.

  Args:
    weights: of the base, see pipelines.load.
    refiner: the same of the refiner.
    mesh: whose devices share a batch; the default device without it.
    refiner_options: fields of load_options.LoadOptions where they differ from
      the base's. LoRAs, words and other autoencoders are the base's alone.
    workload_of: see `choose`; by default one image of the base's size on each
      device, without previews.
    **options: fields of load_options.LoadOptions.

  Returns:
    (base, refiner).

  Raises:
    FileNotFoundError, TypeError, ValueError: see pipelines.load.
  """
  shared = {
    name: value
    for name, value in options.items()
    if name in ('dtype', 'vae_dtype', 'attention', 'offload')
  }
  experts = [(weights, options), (refiner, shared | (refiner_options or {}))]
  choice = None
  if options.get('offload', 'auto') == 'auto':
    choice = choose(experts, workload_of, mesh)
  loaded = [
    pipelines.load(path, mesh=mesh, **fields)
    for path, fields in with_offload(experts, choice)
  ]
  if choice is not None:
    loaded[0] = with_choice(loaded[0], choice)
  return loaded[0], loaded[1]


def choose(
  experts: Sequence[tuple[Path, dict[str, Any]]],
  workload_of: WorkloadOf,
  mesh: jax.sharding.Mesh | None,
) -> offload_choice.Choice:
  """Chooses which nets of several models wait in host memory.

  Args:
    experts: path and options of the base and, if there is one, the refiner.
    workload_of: (size of the base in px) -> the most that is sampled at once.
    mesh: whose devices share a batch; None: the first local one.

  Raises:
    FileNotFoundError: where there are no weights.
    ValueError: for weights that cannot be read, or if nothing fits.
  """
  gpu_memory.enlarge()
  machine, opened = offload_choice.measure(mesh), []
  if machine.device_bytes is None:  # then no weights need be opened
    return offload_choice.Choice(((),) * len(experts))
  for path, fields in experts:
    options, _ = pipelines.resolve(fields, mesh)
    opened.append(sources.open_source(pathlib.Path(path), options))
  models = [source.model for source in opened]
  return offload_choice.choose(models, workload_of(opened[0].size), machine)


def with_offload(
  experts: Sequence[tuple[Path, dict[str, Any]]],
  choice: offload_choice.Choice | None,
) -> list[tuple[Path, dict[str, Any]]]:
  """Returns path and options of models, with the nets that were chosen."""
  if choice is None:
    return list(experts)
  return [
    (path, fields | {'offload': offloaded})
    for (path, fields), offloaded in zip(experts, choice.offloaded)
  ]


def with_choice(
  pipeline: pipelines.Pipeline, choice: offload_choice.Choice
) -> pipelines.Pipeline:
  """Returns a base that decodes as was chosen."""
  return dataclasses.replace(
    pipeline, tile=choice.tile, notes=choice.notes + pipeline.notes
  )
