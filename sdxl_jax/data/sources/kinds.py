"""Where examples come from.

A source has a length, `sizes` int32 [n, 2] (height, width) known without
decoding a picture, and source[i], a dict of
  image            encoded bytes, or uint8 [h, w, 3]
  caption          string
  original_size    (height, width)
  name             path or id, for error reports
  aesthetic_score  float, optional
  flippable        optional; False where a mirrored picture belies the caption
"""

import importlib

from sdxl_jax.data.sources import mixture, record_filters

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
  kind, settings, filters=record_filters.NONE, workers=8, say=print
):
  """The source that a config describes, without what its filters leave out.

  Args:
    kind: 'mixture' or one of KINDS.
    settings: {name: value}, of the source; of a mixture {name: {'source': kind,
      'share': relative, **settings}}.
    filters: Filters, of each source.
    workers: processes that build an index.
    say: takes a line for the user.
  """
  if kind == 'mixture':
    return make_mixture(settings, filters, workers, say)
  if kind not in KINDS:
    raise ValueError(
      f'config.data.source is {kind!r}; choose one of {sorted(KINDS)} or '
      "'mixture'"
    )
  if kind in INDEXED:
    settings = dict(settings, columns=filters.names, workers=workers)
  module_name, class_name = KINDS[kind]
  module = importlib.import_module(f'sdxl_jax.data.sources.{module_name}')
  source = getattr(module, class_name)(**settings)
  return record_filters.FilteredSource(source, filters, say)


def make_mixture(parts, filters, workers, say):
  if not parts:
    raise ValueError(
      'config.data.mixture is empty: give it sources, such as dict(photos='
      "dict(source='folder', path='PICTURES', share=0.7), ...)"
    )
  made = {}
  for name, settings in parts.items():
    settings = dict(settings)
    kind, _ = settings.pop('source'), settings.pop('share')
    if kind in ('mixture', 'precomputed'):
      raise ValueError(
        f'config.data.mixture.{name} is a {kind!r} source, which none can be'
      )
    tell = lambda line, name=name: say(f'{name}: {line}')
    made[name] = make_source(kind, settings, filters, workers, tell)
  return mixture.Mixture(
    made, {name: part['share'] for name, part in parts.items()}
  )
