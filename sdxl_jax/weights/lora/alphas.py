"""Reads the scales of LoRA files that are beside their tensors.

PEFT keeps the settings of one net in adapter_config.json; diffusers keeps them
in the metadata of the file, those of several nets as {net.name: value}.
"""

import json
import pathlib
import re
from typing import Any, NoReturn

CONFIG = 'adapter_config.json'  # of PEFT, in the folder of its file
METADATA = 'lora_adapter_metadata'  # of diffusers, in the file
SCOPE = re.compile(r'(unet|text_encoder|text_encoder_2|transformer)\.(\w+)')
Settings = dict[str, dict[str, Any]]  # {net: settings}; of '' if of any net
# Far above all scales, and far below those that overflow float32.
LARGEST = 1e30


def read(
  path: pathlib.Path, is_peft: bool, metadata: dict[str, str]
) -> Settings:
  """Reads the settings of PEFT beside a file or in it; {}: there are none.

  Args:
    path: of the file.
    is_peft: whether adapter_config.json in its folder belongs to it.
    metadata: of the file.

  Raises:
    ValueError: if they are no JSON objects.
  """
  config = path.parent / CONFIG
  if is_peft and config.is_file():
    return {'': parse(f'{CONFIG} beside it', config.read_bytes())}
  settings = {}
  stored = metadata.get(METADATA, '{}')
  for name, value in parse(f'{METADATA} in it', stored).items():
    match = SCOPE.fullmatch(name)
    net, field = match.groups() if match else ('', name)
    settings.setdefault(net, {})[field] = value
  return settings


def parse(place: str, text: str | bytes) -> dict[str, Any]:
  """Parses a JSON object.

  Raises:
    ValueError: if it is none; the message has the place.
  """
  try:
    settings = json.loads(text, parse_constant=refuse_constant)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{place} is not JSON ({error}): remove it') from None
  if not isinstance(settings, dict):
    raise ValueError(f'{place} is not a JSON object: remove it')
  return settings


def refuse_constant(text: str) -> NoReturn:
  """Refuses NaN and Infinity, which are not JSON."""
  raise ValueError(f'it contains {text}')


def alpha_of(
  settings: Settings, layer: tuple[str, str], rank: int | None
) -> float | None:
  """Returns the alpha of a (net, layer), with its scale alpha / rank.

  Args:
    settings: of PEFT.
    layer: (net, published name).
    rank: of the layer's factors; None: that of the settings, of a layer whose
      matrices are stored whole. The result is then the scale.

  Returns:
    alpha, or None if the settings have none.

  Raises:
    ValueError: for an alpha or a rank that is no number.
  """
  net, name = layer
  of_net = settings.get(net) or settings.get('') or {}
  alpha = of_net.get('lora_alpha', of_net.get('alpha'))
  if alpha is None:
    return None
  alpha = pattern_value(of_net, 'alpha_pattern', name, alpha)
  check_number('lora_alpha', name, alpha, -LARGEST)
  r = rank
  if not r:
    r = pattern_value(of_net, 'rank_pattern', name, of_net.get('r', 1))
    check_number('r', name, r, 1)
  if of_net.get('use_rslora'):  # which divides by the root of the rank
    alpha = alpha * r**0.5
  return float(alpha) if rank else float(alpha) / r


def check_number(field: str, layer: str, value: Any, least: float) -> None:
  """Raises ValueError for a setting that is no number in a useful range."""
  # JSON's true is an int in Python, hence `type`.
  if type(value) not in (int, float) or not least <= value <= LARGEST:
    raise ValueError(
      f'{field} of the layer {layer} is {str(value)[:50]}, which is no number '
      f'from {least:g} to {LARGEST:g}: correct {CONFIG} or {METADATA}'
    )


def pattern_value(
  settings: dict[str, Any], field: str, name: str, default: Any
) -> Any:
  """Returns the value of the first pattern that ends a name, as PEFT does.

  Args:
    settings: of a net.
    field: of them, with {pattern: value}.
    name: of a layer.
    default: the value if no pattern matches.

  Raises:
    ValueError: if the field is no object of JSON.
  """
  patterns = settings.get(field) or {}
  if not isinstance(patterns, dict):
    raise ValueError(
      f'{field} is {str(patterns)[:50]}, and must be a JSON object: correct '
      f'{CONFIG} or {METADATA}'
    )
  for pattern, value in patterns.items():
    try:
      matches = re.fullmatch(rf'(.*\.)?({pattern})', name)
    except (re.error, OverflowError, RecursionError):  # it is no expression
      matches = f'.{name}'.endswith(f'.{pattern}')
    if matches:
      return value
  return default
