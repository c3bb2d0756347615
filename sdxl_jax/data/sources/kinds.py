"""Where examples come from: the kinds of sources, and how one is made.

A source is a sequence of examples, each an image and its caption, whose sizes
are known before any image is decoded; `indexed.Source` has the contract. A
config names the kind and its settings:

  config.data.source = 'folder'
  config.data.folder.path = '/data/photos'

  folder       images with .txt files, or with a metadata table
  webdataset   tar shards, local or behind a URL
  parquet      columns of encoded images and captions, local or behind a URL
  tfds         a TensorFlow Datasets split in ArrayRecord files
  precomputed  moments and encoded text, which `precompute` wrote
  scenes       synthetic images of objects, made on request
  mixture      several of these, in given shares

The first four are indexed: one pass over the headers, done once and stored with
the data, gives sizes, captions and the columns of filters. A new kind is a
class in a module of this folder, and a line in KINDS.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from sdxl_jax.data.sources import mixture, record_filters, repeated

# {kind: (module, class)}; a module is imported only when its kind is used,
# since some depend on large packages.
KINDS = {
  'folder': ('folder', 'Folder'),
  'webdataset': ('webdataset', 'WebDataset'),
  'parquet': ('parquet', 'Parquet'),
  'tfds': ('tfds', 'TFDS'),
  'precomputed': ('precomputed', 'Precomputed'),
  'scenes': ('synthetic', 'Scenes'),
}
INDEXED = ('folder', 'webdataset', 'parquet', 'tfds')


def make_source(
  kind: str,
  settings: dict[str, Any],
  filters: record_filters.Filters = record_filters.NONE,
  workers: int = 8,
  say: Callable[[str], Any] = print,
  several: bool = False,
) -> mixture.Part | mixture.Mixture:
  """Makes a source, without the records that its filters leave out.

  Prints the account of its records.

  Args:
    kind: 'mixture' or one of KINDS.
    settings: {name: value}, arguments of the class; of a mixture {name:
      {'source': kind, 'share': relative, **settings}}.
    filters: applied to each source.
    workers: processes that build an index.
    say: takes a line for the user.
    several: whether all captions of a list are used, or only the first.

  Raises:
    ValueError: for an unknown kind, or filters that leave no record.
  """
  if kind == 'mixture':
    source = make_mixture(settings, filters, workers, several)
  else:
    source = open_source(kind, settings, filters, workers, several)
  say(str(source.account()))
  return source


def open_source(
  kind: str,
  settings: dict[str, Any],
  filters: record_filters.Filters,
  workers: int,
  several: bool = False,
) -> mixture.Part:
  """Makes a source that is no mixture; arguments as for `make_source`."""
  if kind not in KINDS:
    raise ValueError(
      f'config.data.source is {kind!r}; choose one of {sorted(KINDS)} or '
      "'mixture'"
    )
  # An index holds the columns by which filters choose.
  if kind in INDEXED:
    settings = dict(settings, columns=filters.names, workers=workers)
    settings.setdefault('several', several)
  module_name, class_name = KINDS[kind]
  module = importlib.import_module(f'sdxl_jax.data.sources.{module_name}')
  make = getattr(module, class_name)
  try:
    inspect.signature(make).bind(**settings)
  except TypeError as error:
    raise ValueError(
      f'a source of the kind {kind!r} cannot be made, {error}: its settings '
      f'are those of config.data.{kind} in configs/default.py'
    ) from error
  source = make(**settings)
  chosen = record_filters.FilteredSource(source, filters)
  repeats = getattr(source, 'repeats', None)
  if repeats is None:
    return chosen
  return repeated.Repeated(chosen, repeats[chosen.ids])


def take(settings: dict[str, Any], name: str, setting: str) -> Any:
  """Removes a setting of a part of a mixture, and returns it."""
  if setting not in settings:
    raise ValueError(
      f'config.data.mixture.{name} has no {setting}, but {list(settings)}: set '
      "it, such as dict(source='folder', path='IMAGES', share=0.7)"
    )
  return settings.pop(setting)


def make_mixture(
  parts: dict[str, dict[str, Any]],
  filters: record_filters.Filters,
  workers: int,
  several: bool = False,
) -> mixture.Mixture:
  """Makes the source that mixes {name: settings with `source` and `share`}."""
  if not parts:
    raise ValueError(
      'config.data.mixture is empty: set its sources, such as dict(photos='
      "dict(source='folder', path='IMAGES', share=0.7), ...)"
    )
  # Make each source, its share apart.
  sources, shares = {}, {}
  for name, settings in parts.items():
    settings = dict(settings)
    kind, shares[name] = (take(settings, name, n) for n in ('source', 'share'))
    if kind in ('mixture', 'precomputed'):
      raise ValueError(
        f'config.data.mixture.{name}.source is {kind!r}, which cannot be part '
        'of a mixture: name another kind'
      )
    try:
      sources[name] = open_source(kind, settings, filters, workers, several)
    except (ValueError, OSError) as error:
      raise ValueError(f'config.data.mixture.{name}: {error}') from error
  return mixture.Mixture(sources, shares)
