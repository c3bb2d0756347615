"""Sets up what commands need before they run: data, weights, first state."""

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from sdxl_jax import atomic_write
from sdxl_jax.checkpoints import loading, run_words, source_configs
from sdxl_jax.data import buckets, dataset
from sdxl_jax.data.sources import held_out, indexed
from sdxl_jax.distributed import device_mesh, multihost
from sdxl_jax.models import autoencoder_gan, from_config, net_types, sdxl
from sdxl_jax.programs import program_cache
from sdxl_jax.text import tokenizer
from sdxl_jax.training import (
  cache_check,
  compilation,
  config_validation,
  config_warnings,
  train_state,
  word_start,
)

HELD_OUT = 'held_out.txt'  # in the workdir
MAX_NAMED = 10_000  # records that it lists, of each source
Model = sdxl.SDXL | autoencoder_gan.AutoencoderGAN


class LocalSetup(NamedTuple):
  """Data and model of a command that runs frozen nets on local devices."""

  config: config_dict.ConfigDict  # with latent scaling
  source: Any  # of images, as data/ makes it
  mesh: jax.sharding.Mesh  # of this process's devices
  model: Model


def set_up_locally(
  config: config_dict.ConfigDict,
  weights: str | pathlib.Path,
  say: Callable[[str], None],
) -> LocalSetup:
  """Sets up data and model on this process's devices, without parameters.

  Args:
    config: checked by config_validation.check.
    weights: source of the autoencoder, for the latent scaling.
    say: prints a line for the user.
  """
  program_cache.turn_on()
  # Each process works for itself: there are no gradients to share.
  mesh = device_mesh.make_mesh(devices=jax.local_devices())
  # The scaling belongs to the autoencoder's weights, the types to the devices.
  config = source_configs.with_latent_scaling(config, weights)
  chosen = net_types.resolve(config, mesh.devices.flat[0])
  for line in net_types.describe(config, chosen):
    say(line)
  config = chosen
  source = dataset.make_source(config, say)
  model = from_config.make_model(config, device_mesh.platform(mesh))
  return LocalSetup(config, source, mesh, model)


def make_source(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  say: Callable[[str], None],
  accept_changes: bool = False,
) -> Any:
  """Makes the source that a config trains on; see `make_split`."""
  return make_split(config, workdir, say, accept_changes).trained


def make_split(
  config: config_dict.ConfigDict,
  workdir: pathlib.Path,
  say: Callable[[str], None],
  accept_changes: bool = False,
) -> held_out.Split:
  """Makes the config's source, and what is held out of it.

  Writes the account of its records to WORKDIR/records.txt, what cannot be used,
  item by item, to WORKDIR/left_out.txt, and names of records that are held out
  to WORKDIR/held_out.txt.

  Raises:
    ValueError: for a cache of other images or nets, see cache_check, or a share
      of validation that leaves nothing to train on.
  """
  split = dataset.make_split(config, say)
  source = split.trained
  if config_validation.is_precomputed(config):
    cache_check.check_cache(config, source.source, accept_changes, say)
  if multihost.is_primary():
    text = f'{source.account()}\n'
    atomic_write.write_text(workdir / 'records.txt', text)
    # Also where nothing is left out, so that no list of an earlier start stays.
    lines = ''.join(f'{line}\n' for line in source.left_out())
    atomic_write.write_text(workdir / 'left_out.txt', lines)
    if split.held_out or (workdir / HELD_OUT).exists():
      lines = ''.join(f'{name}\n' for name in names_of(split.held_out))
      atomic_write.write_text(workdir / HELD_OUT, lines)
  return split


def names_of(leaves: list[tuple[str, Any]]) -> Iterator[str]:
  """Yields the names of the records of sources, MAX_NAMED of each."""
  for _, source in leaves:
    for i in range(min(len(source), MAX_NAMED)):
      yield indexed.printable(source.name(i))


def warn(lines: Iterable[str], say: Callable[[str], None]) -> None:
  """Prints a line for each of config_warnings'."""
  for line in lines:
    say(f'warning: {line}')


def warn_of_data(
  config: config_dict.ConfigDict,
  schedule: buckets.Schedule,
  say: Callable[[str], None],
) -> None:
  """Prints how the records do not fit the buckets or the batch, if so."""
  counts = schedule.counts
  warn(config_warnings.of_data(config, schedule.buckets, counts), say)


def load_tokenizer(config: config_dict.ConfigDict) -> tokenizer.Tokenizer:
  """Loads the tokenizer of the captions of a run."""
  return run_words.load_tokenizer(config, 'words' in config.trained)


def load_weights(
  config: config_dict.ConfigDict, model: Model, mesh: jax.sharding.Mesh | None
) -> dict[str, Any]:
  """Loads {net: params} from config.init_from, but for config.from_scratch.

  Nets that only samples use lie in the memory of the host, see `idle_nets`.

  Raises:
    ValueError: if a net would be neither loaded nor trained, or is not the
      one that precomputed data come from.
  """
  # Precomputed data replace the frozen nets, unless there are samples.
  idle = idle_nets(config, model)
  names = [
    name for name in model.configs if name not in (*config.from_scratch, *idle)
  ]

  # LPIPS has a source of its own.
  params = {}
  if 'lpips' in names:
    names.remove('lpips')
    params['lpips'] = loading.load_lpips(config, model, mesh)
  if config.init_from:
    params |= loading.load_start(config, model, names, mesh)
    if config.samples.every:
      params |= loading.load_start(config, model, idle, mesh, 'pinned_host')
    if config_validation.is_precomputed(config):
      cache_check.check_nets(config, params)
    if 'words' in config.trained:
      tokenize = run_words.load_tokenizer(config, with_words=False)
      params['words'] = word_start.initial(model, params, tokenize, mesh)
    return params

  # Random parameters are of use only where they are trained.
  missing = sorted(set(model.configs) - set(config.trained) - set(params))
  if missing:
    raise ValueError(
      f'config.init_from is empty, but {missing} would stay random: pass a '
      'source of weights that has them, or add them to config.trained'
    )
  if 'words' in config.trained:
    raise ValueError(
      'config.init_from is empty, but config.words begin with token embeddings '
      'of trained text encoders: pass a source of weights that has them'
    )
  return params


def load_nets(
  config: config_dict.ConfigDict, model: Model, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Loads ({net: params} of the steps, those that only samples use)."""
  params = load_weights(config, model, mesh)
  idle = idle_nets(config, model)
  return params, {name: params.pop(name) for name in idle if name in params}


def idle_nets(config: config_dict.ConfigDict, model: Model) -> list[str]:
  """Returns the nets whose work a cache of moments and text has done.

  Only samples need them, between which they wait in the memory of the host.
  """
  if not config_validation.is_precomputed(config):
    return []
  return [name for name in model.configs if name != 'unet']


def initial_state(
  task: train_state.Task,
  shapes: train_state.State,
  key: jax.Array,
  pretrained: dict[str, Any],
) -> train_state.State:
  """Initialises a State on the mesh.

  Args:
    task: what is trained.
    shapes: the State as jax.ShapeDtypeStruct with shardings.
    key: of the run.
    pretrained: {net: params} from `load_weights`.
  """
  shardings = compilation.shardings_of(shapes)
  # Weights are an argument: a closure would compile them into the program.
  return jax.jit(task.init, out_shardings=shardings)(key, pretrained)
