"""Refuses to train on a cache that its images or nets no longer agree with."""

import json
import os
from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from sdxl_jax.checkpoints import params_digest
from sdxl_jax.data import captioning, dataset
from sdxl_jax.data.sources import cache_layout, precomputed, record_changes
from sdxl_jax.distributed import multihost, sharding
from sdxl_jax.training import cache_settings, config_diff, data_fields

MAX_NAMED = 5  # records that an error names


def check_cache(
  config: config_dict.ConfigDict,
  cache: precomputed.Precomputed,
  accepted: bool,
  say: Callable[[str], Any],
) -> None:
  """Compares a cache with the config, and its images with what it was made of.

  The images are compared by their index alone, and only where they are.

  Args:
    config: of the run, with latent scaling.
    cache: to train on.
    accepted: whether the run may go on with changed images.
    say: takes a line for the user.

  Raises:
    ValueError: if images or captions changed, unless that is accepted, or if
      the config has other nets.
  """
  layout = cache.layout
  if not layout.is_checkable:
    say(f'{cache.folder}: {cache_settings.EARLY}')
    return
  check_config(config, cache)
  check_captions(config, cache)
  # One process looks at all files; the others trust it.
  if not multihost.is_primary():
    return
  try:
    originals = open_originals(config, layout)
  except (OSError, ValueError, ImportError) as error:
    reason = str(error).splitlines()[0]
    say(f'{cache.folder} was not compared with its images: {reason}')
    return
  now = record_changes.of_source(originals)
  if now.digest() == layout.records:
    return
  changes = record_changes.compare(cache.records, now)
  if changes and not accepted:
    raise ValueError(
      f'{cache.folder} is out of date. Its records since it was computed: '
      f'{changes}, such as{names(changes, cache, originals)}\nRun python -m '
      'sdxl_jax.precompute as before, with the same --output, to compute what '
      'is new or changed, or pass --accept_changes to train on it as it is'
    )
  if changes:
    say(f'{cache.folder} is out of date, which is accepted: {changes}')


def check_config(
  config: config_dict.ConfigDict, cache: precomputed.Precomputed
) -> None:
  """Raises ValueError if the nets of a config are not those of a cache."""
  fields, facts = json.loads(config.to_json()), cache.layout.facts
  # In training, other types of numbers are no other net.
  names = ('refiner', *cache_settings.NETS)
  saved = {name: without_types(facts[name]) for name in names}
  now = cache_settings.common({name: fields[name] for name in names}, saved)
  differences = config_diff.differences(saved, now)
  if differences:
    raise ValueError(
      f'{cache.folder} was computed with other nets (cache > config):'
      f'{config_diff.as_lines(differences)}\nSet these fields as they were, or '
      'precompute with this config into another folder'
    )


def check_captions(
  config: config_dict.ConfigDict, cache: precomputed.Precomputed
) -> None:
  """Raises ValueError if a config makes other texts of captions than a cache.

  The cache has applied its settings already.
  """
  # Those of parts of a mixture are of no part of a run on the cache.
  saved = dict(cache.layout.facts.get('captions', {}))
  saved.pop('parts', None)
  now = dataset.make_captioning(config).facts
  unset = {n: getattr(captioning.DEFAULT, n) for n in captioning.FIELDS}
  differences = config_diff.differences(
    unset | saved, unset | now, 'data.captions.'
  )
  if differences:
    raise ValueError(
      f'{cache.folder} was computed with other settings of captions (cache > '
      f'config):{config_diff.as_lines(differences)}\nSet these fields as they '
      'were, or precompute with this config into another folder'
    )


def without_types(fields: Any) -> Any:
  """Returns the fields of a net's config that decide its architecture."""
  if not isinstance(fields, dict):
    return fields
  types = ('dtype', 'param_dtype', 'weights_dtype')
  return {name: value for name, value in fields.items() if name not in types}


def check_nets(config: config_dict.ConfigDict, params: dict[str, Any]) -> None:
  """Compares the parameters of loaded nets with those that made a cache.

  Args:
    config: of the run, on precomputed data.
    params: {net: parameters}, of all processes; those of a net in another
      param_dtype or weights_dtype cannot be compared.

  Raises:
    ValueError: if a net has other parameters.
  """
  folder = config.data.precomputed.path
  layout = cache_layout.Layout.load(folder)
  facts = layout.facts
  for name, known in sorted(facts.get('nets', {}).items()):
    if name not in params:
      continue
    same_types = all(
      facts[name].get(field) == config[name].get(field)
      for field in ('param_dtype', 'weights_dtype')
    )
    if same_types and digest(params[name]) != known:
      raise ValueError(
        f'{folder} was computed with another {name} than that of '
        f'config.init_from, {config.init_from} (the cache: '
        f'{layout.origin["init_from"]}): train with the weights that it '
        'was computed with, or precompute with these into another folder'
      )


def digest(params: dict[str, Any]) -> str:
  """Hashes a net, which may wait in the memory of the host."""
  return params_digest.digest(sharding.fetch(params))


def open_originals(
  config: config_dict.ConfigDict, layout: cache_layout.Layout
) -> Any:
  """Makes the source of the images that a cache was computed of.

  Raises:
    OSError, ValueError, ImportError: if it cannot be read here.
  """
  data, directory = dict(layout.origin['data']), layout.origin['directory']
  kind = data['source']
  # Their index may be elsewhere, and to build it would read all of them.
  if '://' in json.dumps(data[kind]):
    raise OSError('they are behind a URL; run precompute again to compare them')
  data[kind] = at_directory(data[kind], directory)
  config = config.copy_and_resolve_references().unlock()
  config.refiner = layout.facts['refiner']
  config.loss.masked_loss = layout.has_masks
  config.data.buckets = layout.buckets
  for name, value in data.items():
    if isinstance(value, dict):
      # Fields that came later have this config's values; a mixture has none.
      later = {} if name == 'mixture' else config.data[name].to_dict()
      value = config_dict.ConfigDict(later | value)
    config.data[name] = value

  def ignore(line):
    del line

  return dataset.make_source(config, ignore)


def at_directory(settings: dict[str, Any], directory: str) -> dict[str, Any]:
  """Makes paths of a source absolute where that leads to something."""
  result = {}
  for name, value in settings.items():
    if isinstance(value, dict):
      value = at_directory(value, directory)
    elif name in data_fields.LOCATIONS and isinstance(value, str) and value:
      # It may be relative to the working directory.
      path = os.path.join(directory, value)
      # A dataset of TFDS may be a name.
      if name != 'dataset' or os.path.exists(path):
        value = path
    result[name] = value
  return result


def names(
  changes: record_changes.Changes,
  cache: precomputed.Precomputed,
  originals: Any,
) -> str:
  """Lists some records that changed, a line each."""
  rows = [f'changed: {originals.name(i)}' for i in changes.changed[:MAX_NAMED]]
  rows += [f'removed: {cache.name(i)}' for i in changes.removed[:MAX_NAMED]]
  rows += [f'added: {originals.name(i)}' for i in changes.added[:MAX_NAMED]]
  return ''.join(f'\n  {row}' for row in rows[:MAX_NAMED])
