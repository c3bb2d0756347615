"""Reads the text `parameters` of AUTOMATIC1111's web UI, Forge and SD.Next.

  a fox, in (snow:1.2)
  Negative prompt: blurry
  Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1,
  Size: 832x1216, Model: sd_xl_base_1.0

The settings are one line; prompts may have several.
"""

import json
import re

from sdxl_jax.sampling import sampler_aliases
from sdxl_jax.sampling.foreign_settings import (
  INSTEAD,
  ForeignSettings,
  number,
)

NEGATIVE = 'Negative prompt:'
SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_SETTINGS = 3  # of their line; one with fewer is of the prompt
NUMBERS = {
  'Steps': ('steps', int),
  'CFG scale': ('guidance_scale', float),
  'Seed': ('seed', int),
}
# Left out without a note: they repeat others, or change no image.
SILENT = (
  'Model hash',
  'Lora hashes',
  'TI hashes',
  'Version',
  'App',
  'VAE hash',
)


def is_like(text: str) -> bool:
  """Returns whether a text has a line of settings."""
  lines = text.strip().splitlines()
  return any('Steps:' in line for line in lines)


def parse(text: str, location: str) -> ForeignSettings:
  """Parses the text.

  Raises:
    ValueError: for text without a line of settings.
  """
  lines, settings, behind = split(text, location)
  settings = {name: unquote(value) for name, value in settings}
  # The negative prompt goes from its mark to the settings.
  begin = next(
    (i for i, line in enumerate(lines) if line.strip().startswith(NEGATIVE)),
    len(lines),
  )
  negative = '\n'.join(lines[begin:]).strip().removeprefix(NEGATIVE).strip()
  fields = {
    'prompt': '\n'.join(lines[:begin]).strip(),
    # Without one the branch is zeros, as ours is.
    'negative_prompt': negative or None,
    'weighted_prompts': True,
    'prompt_syntax': 'a1111',
    'long_prompts': True,
  }
  found = read_settings(fields, settings)
  return found._replace(left_out=[*found.left_out, *behind])


def split(
  text: str, location: str
) -> tuple[list[str], list[tuple[str, str]], list[str]]:
  """Splits the text at its line of settings, the last one with some.

  Extensions write lines of their own behind it.

  Returns:
    (lines before it, (name, value) of each setting, lines behind it).

  Raises:
    ValueError: for text without one.
  """
  lines = text.strip().split('\n')
  for i in reversed(range(len(lines))):
    settings = SETTING.findall(lines[i])
    names = [name for name, _ in settings]
    if len(settings) >= FEWEST_SETTINGS and 'Steps' in names:
      return lines[:i], settings, lines[i + 1 :]
  raise ValueError(
    f"{location}: the text under 'parameters' has no settings such as "
    "'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1' on a line of "
    'their own: pass the file as it was written'
  )


def read_settings(
  fields: dict[str, object], settings: dict[str, str]
) -> ForeignSettings:
  """Adds {name: value} of the line of settings to the fields."""
  left_out, model = [], settings.pop('Model', '')
  for name, (field, kind) in NUMBERS.items():
    value = number(settings.get(name), kind)
    if value is not None:
      fields[field] = value
      del settings[name]
  size = re.fullmatch(r'(\d+)x(\d+)', settings.get('Size', ''))
  if size:
    del settings['Size']
    fields |= {'width': int(size[1]), 'height': int(size[2])}
  # The schedule may be part of the sampler's name, as it was in older versions.
  sampler = settings.get('Sampler', '')
  chosen = sampler_aliases.sampler(sampler)
  schedule = sampler_aliases.schedule(
    settings.get('Schedule type', 'Uniform' if chosen else ''), sampler
  )
  if chosen:
    fields |= (schedule or {}) | chosen
    del settings['Sampler']
    if schedule:
      settings.pop('Schedule type', None)
  if chosen and chosen['sampler'] == 'unipc':
    name_variant(settings)
  if 'Clip skip' in settings:
    settings['Clip skip'] += ' (without effect on SDXL there)'
  for name in ('Sampler', 'Schedule type'):
    if name in settings:
      settings[name] += f' ({INSTEAD})'
  left_out += [
    f'{name}: {value}' for name, value in settings.items() if name not in SILENT
  ]
  if model:
    left_out.insert(0, f'Model: {model} (pass it as --weights)')
  return ForeignSettings("AUTOMATIC1111's kind", fields, left_out, model)


def name_variant(settings: dict[str, str]) -> None:
  """Adds the variant of UniPC to the settings where it is not ours, bh2.

  A1111 and Forge take bh1 and write another one into the text; SD.Next takes
  bh2 and writes none.
  """
  default = 'bh2' if settings.get('App') == 'SD.Next' else 'bh1'
  variant = settings.pop('UniPC variant', default)
  if variant != 'bh2':
    settings['UniPC variant'] = f'{variant} (bh2 is taken)'


def unquote(value: str) -> str:
  """Returns a value, which is a JSON string where it has commas."""
  if not value.startswith('"'):
    return value.strip()
  try:
    return str(json.loads(value))
  except ValueError:
    return value
