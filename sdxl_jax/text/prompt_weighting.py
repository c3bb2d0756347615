r"""Weights written into a prompt: a (red:1.3) fox on ((snow)), [blurred].

  (words:1.3)   weight 1.3
  (words)       weight 1.1
  [words]       weight 1 / 1.1
  \( \) \[ \] \: \\   the character itself; any other backslash is text

as AUTOMATIC1111's web UI and ComfyUI have made it usual. Groups within groups
multiply, and a word ends where the weight changes. What else the former reads
into prompts is not read: BREAK, AND and a|b are text, and [cat:dog:0.5] and
[cat:0.5] are refused.
"""

import dataclasses
import math
import re

import numpy as np

# A character, or one that a backslash makes text.
SYMBOL = re.compile(r'\\[()\[\]:\\]|.', re.DOTALL)
OPENING = {')': '(', ']': '['}
USUAL = {'(': 1.1, '[': 1 / 1.1}
# Far beyond any use, and far below what would make a context infinite.
LARGEST = 1000.0


@dataclasses.dataclass
class Group:
  """What follows a parenthesis or bracket, as far as it is read."""

  mark: str
  at: int  # where in the prompt
  begin: int  # its first character in the text
  colon: tuple[int, int] | None = None  # its last: where in prompt, in text


def parse(prompt):
  """The text of a prompt without its marks, and the weight of each character.

  Returns:
    (text, weights): a string and float32 [len(text)], 1 outside of groups. No
    two weights meet without a space: (sun:1.2)(flower:2) is 'sun flower'.

  Raises:
    ValueError: on a group that is not opened or not closed, and on a weight
      that is no number or too large; it says where.
  """
  text, weights, groups = [], np.ones(len(prompt)), []
  for symbol in SYMBOL.finditer(prompt):
    mark, at = symbol[0], symbol.start()
    if mark in USUAL:
      groups.append(Group(mark, at, len(text)))
    elif mark in OPENING:
      if not groups or groups[-1].mark != OPENING[mark]:
        raise error(prompt, at, f'{mark!r} has no {OPENING[mark]!r} to close')
      close(prompt, at, groups.pop(), text, weights)
    else:
      if mark == ':' and groups:
        groups[-1].colon = at, len(text)
      text.append(mark[-1])
  if groups:
    raise error(prompt, groups[-1].at, f'{groups[-1].mark!r} is not closed')
  # Rounding makes one weight of 1.1 / 1.1 and 1, however they were multiplied.
  return separate(''.join(text), np.float32(weights[: len(text)]))


def close(prompt, at, group, text, weights):
  """Weighs the group that ends at `at`, and takes its number from the text."""
  weight = written_weight(prompt, at, group)
  if weight is None:
    weight = USUAL[group.mark]
  else:
    del text[group.colon[1] :]
  inside = weights[group.begin : len(text)]
  inside *= weight
  if (abs(inside) > LARGEST).any():
    problem = f'the weights of groups within groups exceed {LARGEST:g}'
    raise error(prompt, group.at, problem)


def written_weight(prompt, at, group):
  """The number after the last colon of a group that ends at `at`, or None."""
  if group.colon is None:
    return None
  begin = group.colon[0] + 1
  written = prompt[begin:at]
  try:
    number = float(written)
  except ValueError:
    number = math.nan
  if group.mark == '(':
    if abs(number) <= LARGEST:
      return number
    limits = f'from {-LARGEST:g} to {LARGEST:g}'
    raise error(prompt, begin, f'{written!r} is not a weight {limits}')
  if math.isnan(number):
    return None
  raise error(prompt, group.at, 'a number in brackets has no meaning here')


def separate(text, weights):
  """A space wherever two weights meet without one."""
  edges = np.flatnonzero(np.diff(weights)) + 1
  edges = [i for i in edges if ' ' not in text[i - 1 : i + 1]]
  pieces = [text[i:j] for i, j in zip([0, *edges], [*edges, None])]
  return ' '.join(pieces), np.insert(weights, edges, weights[edges])


def error(prompt, at, problem):
  """A ValueError that shows where in the prompt and what to do."""
  return ValueError(
    f'{problem}, at character {at + 1} of the prompt {prompt!r}, where it goes '
    f'on {prompt[at : at + 16]!r}: write a backslash before each parenthesis, '
    'bracket or colon that is text, or put it right'
  )
