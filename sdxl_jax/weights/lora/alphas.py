"""Reads the scales of LoRA files that are beside their tensors.

PEFT keeps the settings of one net in adapter_config.json; diffusers keeps them
in the metadata of the file, those of several nets as {net.name: value}.
"""

import json
import pathlib
import re
from typing import Any

CONFIG = 'adapter_config.json'  # of PEFT, in the folder of its file
METADATA = 'lora_adapter_metadata'  # of diffusers, in the file
SCOPE = re.compile(r'(unet|text_encoder|text_encoder_2|transformer)\.(\w+)')
Settings = dict[str, dict[str, Any]]  # {net: settings}; of '' if of any net


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
    return {'': parse(config, config.read_text('utf-8'))}
  settings = {}
  stored = metadata.get(METADATA, '{}')
  for name, value in parse(f'{METADATA} of {path}', stored).items():
    match = SCOPE.fullmatch(name)
    net, field = match.groups() if match else ('', name)
    settings.setdefault(net, {})[field] = value
  return settings


def parse(place: str | pathlib.Path, text: str) -> dict[str, Any]:
  """Parses a JSON object."""
  try:
    settings = json.loads(text)
  except ValueError as error:
    raise ValueError(f'{place} is not JSON ({error}): remove it') from None
  if not isinstance(settings, dict):
    raise ValueError(f'{place} is not a JSON object: remove it')
  return settings


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
  """
  net, name = layer
  of_net = settings.get(net) or settings.get('') or {}
  alpha = of_net.get('lora_alpha', of_net.get('alpha'))
  if alpha is None:
    return None
  alpha = pattern_value(of_net.get('alpha_pattern'), name, alpha)
  r = rank or pattern_value(
    of_net.get('rank_pattern'), name, of_net.get('r', 1)
  )
  if of_net.get('use_rslora'):  # which divides by the root of the rank
    alpha = alpha * r**0.5
  return float(alpha) if rank else float(alpha) / r


def pattern_value(
  patterns: dict[str, Any] | None, name: str, default: Any
) -> Any:
  """Returns the value of the first pattern that ends a name, as PEFT does."""
  for pattern, value in (patterns or {}).items():
    try:
      matches = re.fullmatch(rf'(.*\.)?({pattern})', name)
    except re.error:
      matches = f'.{name}'.endswith(f'.{pattern}')
    if matches:
      return value
  return default
