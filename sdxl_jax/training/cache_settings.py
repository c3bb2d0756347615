"""The settings that decide what a cache holds, and whether they changed."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import config_dict

from sdxl_jax.data import dataset
from sdxl_jax.data.sources import cache_layout, precomputed, record_changes
from sdxl_jax.distributed import multihost
from sdxl_jax.models import sdxl
from sdxl_jax.text import chunking
from sdxl_jax.training import config_diff, word_validation

VERSION = 2  # of what is computed of a record; a change makes other caches
NETS = ('vae', 'text_encoder', 'text_encoder_2')
FIELDS = ('seed', 'refiner', *NETS)
# Fields of the nets that decide speed, and not results.
RUNTIME = ('attention', 'remat')
# Fields of config.data that decide nothing about which records there are.
NOT_OF_RECORDS = (
  'buckets',
  'flip_probability',
  'num_threads',
  'prefetch',
  'index_workers',
  'background',
  'fixed_original_size',
  'fixed_crop_top_left',
  'max_upscale',
  'templates',
)
EARLY = (
  'an earlier version wrote it, so that it cannot be checked against images, '
  'captions and nets; to renew it, precompute into another --output'
)


def check_images(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for data that are precomputed already, or cannot be."""
  if config.data.source == 'precomputed':
    raise ValueError(
      "config.data.source is 'precomputed'; name the source of the images that "
      'are to be precomputed'
    )
  word_validation.check_not_precomputed(config)


def make_layout(
  config: config_dict.ConfigDict,
  model: sdxl.SDXL,
  source: Any,
  crops: int,
  flips: bool,
  dtype: str,
) -> cache_layout.Layout:
  """Describes a cache: its arrays, and all inputs but the nets' parameters.

  Args:
    config: with latent scaling.
    model: of the config.
    source: of the images.
    crops: different crops of each image.
    flips: whether there are mirror images.
    dtype: of moments and text.
  """
  # Through JSON, as the layout of an earlier run is read.
  fields = json.loads(config.to_json())
  data = fields['data']
  facts = {name: fields[name] for name in FIELDS}
  for name in NETS:
    facts[name] = without_runtime(facts[name])
  # Caches of captions as they are have no such fact.
  if captions := dataset.make_captioning(config).all_facts:
    facts['captions'] = captions
  return cache_layout.Layout(
    buckets=tuple(map(tuple, data['buckets'])),
    crops=crops,
    flips=2 if flips else 1,
    dtype=dtype,
    downscale=model.vae.downscale,
    moments=2 * model.unet.in_channels,
    context=(
      chunking.count_for(fields['max_token_length']) * chunking.LENGTH,
      model.unet.context_dim,
    ),
    pooled=model.text.text_encoder_2.projection_dim,
    facts={
      'version': VERSION,
      'background': data['background'],
      **facts,
      # Caches of earlier versions have no such fact.
      **({'masked_loss': True} if dataset.has_masks(config) else {}),
    },
    records=record_changes.of_source(source).digest(),
    origin={
      'directory': os.getcwd(),
      'init_from': fields['init_from'],
      'data': data_origin(data),
    },
  )


def without_runtime(fields: dict[str, Any] | None) -> dict[str, Any] | None:
  """Returns the fields of a net's config that decide its results."""
  if fields is None:
    return None
  return {n: value for n, value in fields.items() if n not in RUNTIME}


def data_origin(data: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of config.data by which the source was made."""
  sections = (data['source'], 'filters')
  return {
    name: value
    for name, value in data.items()
    if name in sections
    or not (isinstance(value, dict) or name in NOT_OF_RECORDS)
  }


def open_cache(
  folder: pathlib.Path,
  layout: cache_layout.Layout,
  config: config_dict.ConfigDict,
  source: Any,
  say: Callable[[str], Any],
) -> precomputed.Precomputed | None:
  """Opens the finished cache of a folder, None if there is none yet.

  Args:
    folder: of the cache.
    layout: what is to be computed.
    config: that the layout was made of.
    source: of the images.
    say: takes a line for the user.

  Raises:
    ValueError: if the folder holds a cache of other settings, or shards are
      missing.
  """
  saved, table = precomputed.read_index(folder)
  is_finished = table is not None
  if saved and not saved.is_checkable:
    check_early(folder, saved, layout, source, is_finished)
    say(f'{folder}: {EARLY}')
  elif saved:
    check_same(folder, saved, layout)
  multihost.barrier('every process has read the old layout')
  if not is_finished:
    return None
  length = config.max_token_length
  return precomputed.Precomputed(folder, layout.dtype, length)


def check_same(
  folder: pathlib.Path,
  saved: cache_layout.Layout,
  layout: cache_layout.Layout,
) -> None:
  """Raises ValueError with the differences if a folder has other settings.

  Args:
    folder: of the cache.
    saved: what the folder holds.
    layout: what is to be computed.
  """
  refuse(folder, config_diff.differences(saved.settings, layout.settings))


def check_early(
  folder: pathlib.Path,
  saved: cache_layout.Layout,
  layout: cache_layout.Layout,
  source: Any,
  is_finished: bool,
) -> None:
  """Checks what is known of a cache that an earlier version wrote.

  Args:
    folder: of the cache.
    saved: what the folder holds.
    layout: what is to be computed.
    source: of the images.
    is_finished: whether the cache is.

  Raises:
    ValueError: for other settings, or a cache that is not finished.
  """
  origin, settings = layout.origin, layout.settings
  data = origin['data']
  settings['facts'] |= {
    'init_from': origin['init_from'],
    'source': {data['source']: data[data['source']]},
    'filters': data['filters'],
    'records': len(source),
    'sizes': hashlib.sha256(np.ascontiguousarray(source.sizes)).hexdigest(),
  }
  known = common(settings, saved.settings)
  refuse(folder, config_diff.differences(common(saved.settings, known), known))
  if not is_finished:
    raise ValueError(
      f'{folder} holds an unfinished cache of an earlier version, which this '
      'one cannot continue: pass another --output, or remove the folder'
    )


def common(fields: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields that others have too, sections field by field."""
  return {
    name: common(value, others[name])
    if isinstance(value, dict) and isinstance(others[name], dict)
    else value
    for name, value in fields.items()
    if name in others
  }


def refuse(folder: pathlib.Path, differences: dict[str, str]) -> None:
  """Raises ValueError if there are differences between two caches."""
  if differences:
    raise ValueError(
      f'{folder} holds another cache. Changed (saved > now):'
      f'{config_diff.as_lines(differences)}\nPass another --output, or remove '
      'the folder'
    )
