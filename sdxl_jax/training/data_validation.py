"""Checks the fields of a config that say which images are trained on."""

from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from sdxl_jax.data import captioning, dataset
from sdxl_jax.training import config_fields

# Kinds of sources that name a score, and the name where a config has none.
SCORES = {'webdataset': 'aesthetic_score', 'parquet': '', 'tfds': ''}
# Sections of config.data that are no source, or none within a mixture.
NO_PARTS = ('captions', 'filters', 'precomputed')
CAPTIONS = 'config.data.captions'
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
  check_captions(config)
  check_buckets(config)
  if config.refiner:
    for place, kind, settings in sources(config):
      check_scores(place, kind, settings)


def check_captions(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for settings of captions that cannot be used."""
  for place, c in captions_of(config):
    if not c.caption_separator:
      raise ValueError(
        f"{place}.caption_separator is '': name what is between two tags, such "
        "as ','"
      )
    n = c.caption_dropout_every_n_epochs
    if n and config.uncond == 'zeros' and config.task == 'diffusion':
      raise ValueError(
        f'{place}.caption_dropout_every_n_epochs is {n}, but with '
        "config.uncond = 'zeros' the step on the device drops encoded text, "
        "and does not know of passes: set config.uncond to 'empty', as kohya's "
        'scripts train, or use config.caption_dropout'
      )
  if config.data.source == 'precomputed':
    check_encodable(config)


def captions_of(
  config: config_dict.ConfigDict,
) -> Iterator[tuple[str, captioning.Captioning]]:
  """Yields (field of the section, settings of captions), of parts too."""
  captions = dataset.make_captioning(config)
  yield CAPTIONS, captions
  for name, part in captions.parts:
    yield f'config.data.mixture.{name}', part


def check_encodable(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for settings of captions that no cache can have."""
  for place, c in captions_of(config):
    for name in 'shuffle_caption', 'caption_tag_dropout_rate':
      if value := getattr(c, name):
        raise ValueError(
          f'{place}.{name} is {value}, so that nearly every pass has a text of '
          'its own, and a cache holds the encoded texts of all passes: set it '
          'to its default, or train on the images themselves'
        )
    n = c.caption_dropout_every_n_epochs
    if n and place != CAPTIONS:
      raise ValueError(
        f'{place}.caption_dropout_every_n_epochs is {n}, but a cache does not '
        'hold which part of the mixture a record is of: set it for all of them '
        f'in {CAPTIONS}, or train on the images themselves'
      )


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
  if fields is None or part.source in NO_PARTS:
    raise ValueError(
      f'{place}.source is {part.source!r}, which cannot be part of a mixture: '
      'name another kind'
    )
  fields = fields | known['data.captions']
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
