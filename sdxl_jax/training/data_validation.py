"""Checks the fields of a config that say which images are trained on."""

from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from sdxl_jax.data import dataset
from sdxl_jax.training import config_fields

# Kinds of sources that name a score, and the name where a config has none.
SCORES = {'webdataset': 'aesthetic_score', 'parquet': '', 'tfds': ''}
SHARE = config_fields.FACTOR  # of a part of a mixture, relative


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for filters or sources that cannot give a record."""
  c = config.data.filters
  if c.max_aspect < c.min_aspect:
    raise ValueError(
      f'config.data.filters.max_aspect is {c.max_aspect}, under min_aspect, '
      f'{c.min_aspect}: exchange them; both are height / width'
    )
  if config.data.source == 'mixture':
    for name, part in config.data.mixture.items():
      check_part(config, name, part)
  check_buckets(config)
  if config.refiner:
    for place, kind, settings in sources(config):
      check_scores(place, kind, settings)


def sources(
  config: config_dict.ConfigDict,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Yields (field of the section, kind, settings) of each source in use."""
  c = config.data
  if c.source != 'mixture':
    yield f'config.data.{c.source}', c.source, c[c.source].to_dict()
    return
  for name, part in c.mixture.items():
    yield f'config.data.mixture.{name}', part.source, part.to_dict()


def check_part(config: config_dict.ConfigDict, name: str, part: Any) -> None:
  """Raises ValueError for a part of a mixture with unknown settings."""
  place = f'config.data.mixture.{name}'
  known = config_fields.SECTIONS
  if not isinstance(part, config_dict.ConfigDict) or 'source' not in part:
    raise ValueError(
      f"{place} is {part!r}; it must be dict(source='folder', share=0.5, ...)"
    )
  fields = known.get(f'data.{part.source}')
  if fields is None or part.source in ('filters', 'precomputed'):
    raise ValueError(
      f'{place}.source is {part.source!r}, which cannot be part of a mixture: '
      'name another kind'
    )
  fields = fields | {'source': config_fields.Text(), 'share': SHARE}
  for setting in 'share', *part:
    if setting not in fields or setting not in part:
      raise ValueError(
        f'{place} has {sorted(part)}; a {part.source} has a share and some of '
        f'{sorted(set(fields) - {"share"})}'
      )
    remedy = fields[setting].remedy(part[setting])
    if remedy:
      raise ValueError(f'{place}.{setting} is {part[setting]!r}; {remedy}')


def check_scores(place: str, kind: str, settings: dict[str, Any]) -> None:
  """Raises ValueError for a source that has no scores for the refiner."""
  if kind == 'scenes':
    setting, value, remedy = 'scored', settings.get('scored', False), 'True'
  elif kind in SCORES:
    setting, value = 'score', settings.get('score', SCORES[kind])
    remedy = 'the name that the data have for it'
  else:
    return
  if not value:
    raise ValueError(
      f'{place}.{setting} is {value!r}, but config.refiner is True, and a '
      f'refiner is trained on scores: set it to {remedy}'
    )


def check_buckets(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for sizes that are no whole number of latents."""
  downscale = dataset.downscale_of(config)
  sizes = [('config.data.buckets', bucket) for bucket in config.data.buckets]
  # Otherwise the run would fail at its first samples, long after the start.
  if config.task == 'diffusion' and config.samples.every:
    sizes.append(('config.samples.size', config.samples.size))
  for field, size in sizes:
    if any(side < downscale or side % downscale for side in size):
      raise ValueError(
        f'{field} has {tuple(size)}; heights and widths must be multiples of '
        f'{downscale}, the px that one latent stands for'
      )
