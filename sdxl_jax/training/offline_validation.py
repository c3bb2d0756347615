"""Measures the losses of validation of weights, apart from a run."""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tqdm
from ml_collections import config_dict

from sdxl_jax.checkpoints import (
  loading,
  orbax_checkpoint,
  run_params,
  run_sources,
  source_configs,
)
from sdxl_jax.data.sources import held_out
from sdxl_jax.data.validation_records import HELD_OUT, TRAINED
from sdxl_jax.training import (
  cache_check,
  config_validation,
  run_setup,
  tasks,
  validation,
  validation_share,
)
from sdxl_jax.weights import formats

FILE = 'validation.json'
# Of a run, and of no net: what it trains beside them.
PARTS = ('lora', 'words')


class Weights(NamedTuple):
  """Where parameters come from."""

  place: str | pathlib.Path
  average: str = 'ema'  # of a workdir, see run_params.restore

  @property
  def run(self) -> config_dict.ConfigDict | None:
    """The config of the run, None of published weights."""
    if formats.is_published(self.place):
      return None
    return source_configs.saved_config(self.place)


def evaluate(
  config: config_dict.ConfigDict,
  weights: Weights,
  output: str | pathlib.Path,
  batch_size: int,
  say: Callable[[str], Any],
) -> dict[str, Any]:
  """Measures what a run with this config writes as `validation/...`.

  Args:
    config: as for training; what is held out is what it says, else what the
      workdir's run has held out.
    weights: to measure.
    output: folder; validation.json is written to it.
    batch_size: on each device.
    say: prints a line for the user.

  Returns:
    What validation.json has: the losses by name, see validation.Losses, those
    of each bucket, and the numbers of records.

  Raises:
    ValueError: if nothing is held out, or nothing of it can be read.
  """
  config_validation.check(config)
  output = pathlib.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  config = for_weights(config, weights)
  setup = run_setup.set_up_locally(config, weights.place, say)
  if config_validation.is_precomputed(config):
    cache_check.check_cache(setup.config, setup.source.source, True, say)
  split = split_records(setup.config, setup.source, say)
  validator = validation.make(
    setup.config,
    tasks.make_task(setup.config, setup.model),
    setup.mesh,
    frozen={},
    split=split,
    tokenize=run_setup.load_tokenizer(setup.config),
    rows=batch_size * setup.mesh.size,
  )
  if validator is None:
    raise ValueError(
      f'config.validation.share is {split.share:.4g}, under which none of the '
      'records falls: raise it'
    )
  params = load_params(setup, weights)
  bar = functools.partial(tqdm.tqdm, total=validator.batch_count, unit='batch')
  losses = validator.measure({'given': params}, wrap=bar)['given']
  result = summarise(losses, say) | {
    'share': split.share,
    'weights': str(weights.place),
    'average': weights.average,
  }
  (output / FILE).write_text(json.dumps(result, indent=2) + '\n')
  return result


def summarise(
  losses: validation.Losses, say: Callable[[str], Any]
) -> dict[str, Any]:
  """Returns the means, and the numbers of records; prints the first of them.

  Raises:
    ValueError: if no record held out was read.
  """
  metrics = losses.metrics(by_bucket=True)
  if validation.LOSS not in metrics:
    raise ValueError('none of the records held out can be read')
  groups = [record.group for record in losses.records]
  counts = {name: groups.count(name) for name in (HELD_OUT, TRAINED)}
  text = f'validation loss {metrics["loss"]:.4g} of {counts[HELD_OUT]} records'
  if 'gap' in metrics:
    text += f'; {metrics["gap"]:+.4g} from {counts[TRAINED]} trained ones'
  say(text)
  return metrics | {'records': counts}


def for_weights(
  config: config_dict.ConfigDict, weights: Weights
) -> config_dict.ConfigDict:
  """Returns the config with what the weights decide.

  A workdir decides what was trained, from where, and what was held out, unless
  the config says that. Published weights have neither factors nor words.
  """
  run = weights.run
  config = config.copy_and_resolve_references().unlock()
  if run is None:
    config.init_from = str(weights.place)
    config.lora, config.words = {}, {}
    config.trained = tuple(n for n in config.trained if n not in PARTS)
    return config.lock()
  for name in ('init_from', 'trained', *PARTS):
    config[name] = run.get(name, config[name])
  config = validation_share.of_run(config.lock(), run.to_dict())
  if config.validation.share == 0:
    raise ValueError(
      f'the run in {weights.place} held out no records: '
      '--config.validation.share=0.05 measures the loss of some that it was '
      'trained on'
    )
  return config


def split_records(
  config: config_dict.ConfigDict, source: Any, say: Callable[[str], Any]
) -> held_out.Split:
  """Splits the records, and prints how many are held out.

  Raises:
    ValueError: if none are.
  """
  share = config.validation.share
  if share is None:
    share = held_out.choose_share(source)
  if not share:
    raise ValueError(
      f'config.validation.share is {config.validation.share}, and '
      f'{len(source):,} records are too few to hold some out unasked: pass '
      '--config.validation.share=0.05'
    )
  split = held_out.split(source, share)
  say(validation_share.describe(share, split, every=0))
  return split


def load_params(
  setup: run_setup.LocalSetup, weights: Weights
) -> dict[str, Any]:
  """Loads {net: parameters} of all that validation applies."""
  config, model, mesh = setup.config, setup.model, setup.mesh
  names = [n for n in model.configs if n not in ('lpips', 'discriminator')]
  if config_validation.is_precomputed(config):
    names = ['unet']
  params = {}
  if 'lpips' in model.configs:
    params['lpips'] = loading.load_lpips(config, model, mesh)
  reading, run = run_sources.reading(config), weights.run
  if run is None:
    return params | loading.load_params(
      weights.place, model, names, mesh, weights.average, options=reading
    )
  # Factors stay apart, as the run computes with them.
  trained = [name for name in names if name in run.trained]
  if trained:
    params |= loading.load_params(
      weights.place, model, trained, mesh, weights.average, options=reading
    )
  frozen = [name for name in names if name not in trained]
  if frozen:
    params |= loading.load_start(run, model, frozen, mesh, options=reading)
  parts = [name for name in PARTS if name in run.trained]
  if parts:
    folder = orbax_checkpoint.find(weights.place)
    params |= run_params.restore(folder, mesh, parts, weights.average)
  return params
