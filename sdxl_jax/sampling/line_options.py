"""Settings at the end of a prompt, as in the sample prompts of sd-scripts.

  a red fox --w 832 --h 1216 --d 7 --s 28 --l 5 --n blurry, dark

--d is the seed, --l the scale of guidance, --n the negative prompt and --ss the
sampler. Any other `--name` is part of the prompt.
"""

import re
from typing import Any

# {option: (field of a Request, type)}.
OPTIONS = {
  'w': ('width', int),
  'h': ('height', int),
  'd': ('seed', int),
  's': ('steps', int),
  'l': ('guidance_scale', float),
  'n': ('negative_prompt', str),
  'ss': ('sampler', str),
}
OPTION = re.compile(rf'\s--({"|".join(OPTIONS)})(?=\s|$)')
# Samplers of sd-scripts that have another name here.
SAMPLERS = {
  'euler_a': 'euler_ancestral',
  'k_euler': 'euler',
  'k_euler_a': 'euler_ancestral',
  'k_lms': 'lms',
  'k_dpm_2': 'dpm_2',
  'dpm_2_a': 'dpm_2_ancestral',
  'k_dpm_2_a': 'dpm_2_ancestral',
  'dpmsolver++': 'dpmpp_2m',
  'dpmsingle': 'dpmpp_2s',
}


def parse(text: str, location: str) -> dict[str, Any]:
  """Parses a line into {field of a Request: value}.

  Args:
    text: prompt, and maybe options.
    location: of the line, for errors.

  Raises:
    ValueError: for an option that is given twice, or is no number.
  """
  prompt, *parts = OPTION.split(f' {text.strip()}')
  fields = {'prompt': prompt.strip()}
  for option, value in zip(parts[::2], parts[1::2]):
    name, kind = OPTIONS[option]
    if name in fields:
      raise ValueError(f'{location} has --{option} twice: leave one out')
    fields[name] = number(kind, option, value.strip(), location)
  if 'sampler' in fields:
    fields['sampler'] = SAMPLERS.get(fields['sampler'], fields['sampler'])
  return fields


def number(kind: type, option: str, value: str, location: str) -> Any:
  """Returns the value of an option, a number where its kind is one."""
  try:
    return kind(value)
  except ValueError:
    names = {int: 'a whole number', float: 'a number'}
    raise ValueError(
      f'{location}: --{option} is {value!r}; it must be {names[kind]}'
    ) from None
