"""Settings of sampling: each stands here once, with its default and its help.

`sample.generate`, the flags of the command, the text of a PNG, files of
prompts, config.samples and the planner take them from here.
"""

import dataclasses
import math
import operator
import typing
from typing import Any

from sdxl_jax.diffusion import samplers, sampling_schedule
from sdxl_jax.text import prompt_weighting

Pair = tuple[int, int]
Levels = tuple[float, float]
Texts = tuple[str, ...]
LARGEST_PX = 10**6  # of micro-conditioning in requests of the command
# What the values of a field are.
KINDS = {
  int: 'a whole number',
  float: 'a number',
  bool: 'true or false',
  Pair: 'two whole numbers',
  Levels: 'two numbers',
}


def option(
  default: Any,
  about: str,
  choices: Any = None,
  *,
  share: bool = False,
  least: int | None = None,
  most: int | None = None,
) -> Any:
  """Makes a dataclass field.

  Args:
    default: of the field.
    about: its help.
    choices: its values, if limited.
    share: whether it is from 0 to 1.
    least, most: of requests of the command; models and samplers may have
      narrower limits.
  """
  metadata = {
    'about': about,
    'choices': choices and list(choices),
    'share': share,
    'least': least,
    'most': most,
  }
  return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SampleSettings:
  """How images are sampled; one set of settings holds for a whole batch."""

  height: int | None = option(
    None,
    'px; default: that of the image, or the size the model was made for',
    least=1,
    most=65_536,
  )
  width: int | None = option(
    None, 'px; default: as for height', least=1, most=65_536
  )

  # The sampler and its noise levels.
  steps: int = option(50, 'sampler steps', least=1, most=100_000)
  sampler: str | None = option(
    None,
    "sampler; default: that of the model's scheduler_config.json",
    samplers.SAMPLERS,
  )
  spacing: str | None = option(
    None,
    "spacing of timesteps; default: that of the model's scheduler_config.json",
    sampling_schedule.SPACINGS,
  )
  sigmas: str | None = option(
    None,
    "spacing of sigmas; default: that of the model's scheduler_config.json",
    sampling_schedule.SIGMAS,
  )
  eta: float | None = option(
    None, "0..1, share of fresh noise; default: the sampler's own", share=True
  )

  # Classifier-free guidance. Models distilled with guidance take the scale as
  # an input, at the cost of one branch and without negative prompts.
  guidance_scale: float = option(
    5.0, '1 or less: no guidance, at half the cost'
  )
  guidance_rescale: float = option(
    0.0, '0..1, Lin et al. 2023, equation 16; 0: off', share=True
  )
  # Kynkaanniemi et al. 2024, arXiv 2404.07724.
  guidance_interval: Levels | None = option(
    None,
    'LO,HI, noise levels (sigma): steps that begin above LO and up to HI are '
    'guided, the others are of half the cost; default: all',
  )

  # ControlNet, Zhang et al. 2023, arXiv 2302.05543, section 3.3.
  guess_mode: bool = option(
    False,
    'ControlNets steer the conditional branch alone, and less at higher '
    'resolutions, so that no prompt is needed',
  )

  # Micro-conditioning (SDXL, section 2.2), and that of the negative branch.
  original_size: Pair | None = option(
    None, 'H,W in px, micro-conditioning; default: height,width'
  )
  crop_top_left: Pair = option((0, 0), 'T,L in px, micro-conditioning')
  target_size: Pair | None = option(
    None, 'H,W in px, micro-conditioning; default: height,width'
  )
  negative_original_size: Pair | None = option(
    None, 'original_size of the unconditional branch; default: the same'
  )
  negative_crop_top_left: Pair | None = option(
    None, 'crop_top_left of the unconditional branch; default: the same'
  )
  negative_target_size: Pair | None = option(
    None, 'target_size of the unconditional branch; default: the same'
  )
  aesthetic_score: float = option(6.0, 'micro-conditioning of a refiner')
  negative_aesthetic_score: float = option(
    2.5, 'aesthetic_score of the unconditional branch'
  )

  # Text.
  clip_skip: int = option(0, 'last text encoder blocks to skip', least=0)
  weighted_prompts: bool = option(False, 'parse (words:1.3) as a weight')
  prompt_syntax: str = option(
    'a1111',
    'of weighted prompts; comfyui: inner weights replace outer ones, and '
    'square brackets, BREAK and AND are text',
    prompt_weighting.SYNTAXES,
  )
  long_prompts: bool = option(
    False, 'encode prompts beyond 77 tokens in chunks instead of truncating'
  )

  # An image to start from, and decoding.
  strength: float | None = option(
    None,
    '0..1, share of the steps taken from an image; default: 0.3, or 1.0 with '
    'a mask',
    share=True,
  )
  mask_threshold: float = option(
    0.5,
    'above 0 to 1; 8 x 8 px are repainted if the mask is at or above it in any '
    'of them',
  )
  tile: int | None = option(
    None, 'px; decode in tiles: the same image, less memory, more time', least=2
  )

  # A refiner.
  refiner_start: float = option(
    0.8,
    'share of the noise levels after which the refiner takes over',
    share=True,
  )
  refiner_strength: float | None = option(
    None, "0..1, the refiner renoises the base's image instead", share=True
  )

  def __post_init__(self):
    """Raises ValueError for values that no sampler can take."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      check_type(field, value)
      is_share = field.metadata['share'] and value is not None
      if is_share and not 0 <= value <= 1:
        raise ValueError(f'{field.name} is {value}; it must be from 0 to 1')
    if not 0 < self.mask_threshold <= 1:
      raise ValueError(
        f'mask_threshold is {self.mask_threshold}; it must be above 0 and at '
        'most 1'
      )
    if self.guidance_interval is not None:
      low, high = self.guidance_interval
      if not 0 <= low < high:
        raise ValueError(
          f'guidance_interval is {low:g},{high:g}; it must be two noise levels '
          'from 0 on, the lower one first, as 0.28,5.42'
        )


FIELDS = {f.name: f for f in dataclasses.fields(SampleSettings)}


def value_type(field: dataclasses.Field) -> Any:
  """Returns the type of a field's values, None aside."""
  kinds = typing.get_args(field.type)
  if not kinds or typing.get_origin(field.type) is tuple:
    return field.type
  return kinds[0]


def check_type(field: dataclasses.Field, value: Any) -> None:
  """Raises ValueError for a value that is not of a field's type.

  Args:
    field: of whole numbers, finite numbers, pairs or true and false; others
      pass.
    value: from Python, where numpy's numbers will do.
  """
  kind = value_type(field)
  is_absent = value is None and field.default is None
  if is_absent or kind not in KINDS:
    return
  try:
    fits = is_of_kind(value, kind)
  except (TypeError, ValueError, OverflowError):
    fits = False
  if not fits:
    raise ValueError(f'{field.name} is {value!r}; it must be {KINDS[kind]}')
  if kind is float and not math.isfinite(value):
    raise ValueError(f'{field.name} is {value}; it must be a finite number')
  if kind == Levels and not all(map(math.isfinite, value)):
    raise ValueError(f'{field.name} is {value}; both must be finite numbers')


def is_of_kind(value: Any, kind: Any) -> bool:
  """Returns whether a value of Python is of one of KINDS.

  Raises:
    TypeError, ValueError, OverflowError: for some of those that are not.
  """
  if kind is bool:
    return isinstance(value, bool) or value in (0, 1)
  if kind in (Pair, Levels):
    side = int if kind == Pair else float
    return len(value) == 2 and all(is_of_kind(x, side) for x in value)
  (operator.index if kind is int else float)(value)
  return not isinstance(value, (bool, str))


def check_limits(field: dataclasses.Field, value: Any) -> None:
  """Raises ValueError for a number beyond the limits of a request."""
  least, most = field.metadata['least'], field.metadata['most']
  if value is None:
    return
  if least is not None and value < least:
    raise ValueError(f'{field.name} is {value}; it must be at least {least}')
  if most is not None and value > most:
    raise ValueError(f'{field.name} is {value}; it must be at most {most}')
  if value_type(field) == Pair and max(map(abs, value)) > LARGEST_PX:
    raise ValueError(
      f'{field.name} is {value} in px; both must be at most {LARGEST_PX}'
    )


def describe(field: dataclasses.Field) -> str:
  """Returns the help of a field with its default."""
  about = field.metadata['about']
  if field.default in (None, False, ()):
    return about
  return f'{about}; default: {field.default}'


def micro_conditions(
  settings: SampleSettings, size: Pair
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the micro-conditioning of both branches of guidance.

  Args:
    settings: of the batch.
    size: (height, width) of the images in px.

  Returns:
    {name: value} of the prompts, and of the unconditional branch.
  """
  conditions = {
    'original_size': settings.original_size or size,
    'crop_top_left': settings.crop_top_left,
    'target_size': settings.target_size or size,
  }
  negative = {
    name: getattr(settings, f'negative_{name}') or value
    for name, value in conditions.items()
  }
  conditions['aesthetic_score'] = settings.aesthetic_score
  negative['aesthetic_score'] = settings.negative_aesthetic_score
  return conditions, negative
