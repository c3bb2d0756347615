r"""Prompt weighting: (red:1.3) fox on ((snow)), [blurred].

  (words:1.3)   weight 1.3
  (words)       weight 1.1
  [words]       weight 1 / 1.1
  \( \) \[ \] \: \\   the character itself; any other backslash is text

This is the syntax of AUTOMATIC1111's web UI and ComfyUI. Nested groups
multiply, and a word ends where the weight changes. AUTOMATIC1111's other syntax
is not supported: BREAK, AND and a|b are text, and [cat:dog:0.5] and [cat:0.5]
raise an error.
"""

import dataclasses
import math
import re

import numpy as np
from jaxtyping import Float

# A character, or an escaped one.
SYMBOL = re.compile(r'\\[()\[\]:\\]|.', re.DOTALL)
OPENING = {')': '(', ']': '['}
DEFAULT_WEIGHTS = {'(': 1.1, '[': 1 / 1.1}
# Far above useful weights, and far below those that overflow a context.
LARGEST = 1000.0


@dataclasses.dataclass
class Group:
  """An open parenthesis or bracket while the prompt is parsed.

  Attributes:
    mark: '(' or '['.
    at: index of the mark in the prompt.
    begin: index of the group's first character in the text.
    colon: indices of the group's last colon in the prompt and in the text.
  """

  mark: str
  at: int
  begin: int
  colon: tuple[int, int] | None = None


def parse(prompt: str) -> tuple[str, Float[np.ndarray, ' characters']]:
  """Returns a prompt's text without marks, and the weight of each character.

  The weights are float32, and 1 outside of groups. A space separates different
  weights: (sun:1.2)(flower:2) becomes 'sun flower'.

  Raises:
    ValueError: on a group that is not opened or not closed, and on a weight
      that is no number or too large; the error names the position.
  """
  text, weights, groups = [], np.ones(len(prompt)), []
  # Marks open and close groups; all else is text.
  for symbol in SYMBOL.finditer(prompt):
    mark, at = symbol[0], symbol.start()
    if mark in DEFAULT_WEIGHTS:
      groups.append(Group(mark, at, len(text)))
    elif mark in OPENING:
      if not groups or groups[-1].mark != OPENING[mark]:
        raise error(prompt, at, f'{mark!r} has no {OPENING[mark]!r} to close')
      close(prompt, at, groups.pop(), text, weights)
    else:
      if mark == ':' and groups:
        groups[-1].colon = (at, len(text))
      text.append(mark[-1])
  if groups:
    raise error(prompt, groups[-1].at, f'{groups[-1].mark!r} is not closed')
  # Rounding to float32 makes 1.1 / 1.1 equal 1.
  return separate(''.join(text), np.float32(weights[: len(text)]))


def close(
  prompt: str,
  at: int,
  group: Group,
  text: list[str],
  weights: Float[np.ndarray, ' _'],
) -> None:
  """Applies the weight of the group that ends at `at`, in place.

  Removes the weight's number from the end of `text`.
  """
  weight = explicit_weight(prompt, at, group)
  if weight is None:
    weight = DEFAULT_WEIGHTS[group.mark]
  else:
    del text[group.colon[1] :]
  inside = weights[group.begin : len(text)]
  inside *= weight
  if (abs(inside) > LARGEST).any():
    problem = f'the weights of groups within groups exceed {LARGEST:g}'
    raise error(prompt, group.at, problem)


def explicit_weight(prompt: str, at: int, group: Group) -> float | None:
  """Returns the number after a group's last colon, or None without one."""
  if group.colon is None:
    return None
  # The text between the colon and the closing mark.
  begin = group.colon[0] + 1
  digits = prompt[begin:at]
  try:
    number = float(digits)
  except ValueError:
    number = math.nan
  if group.mark == '(':
    if abs(number) <= LARGEST:
      return number
    limits = f'from {-LARGEST:g} to {LARGEST:g}'
    raise error(prompt, begin, f'{digits!r} is not a weight {limits}')
  if math.isnan(number):
    return None
  raise error(prompt, group.at, 'a number in brackets has no meaning here')


def separate(
  text: str, weights: Float[np.ndarray, ' characters']
) -> tuple[str, Float[np.ndarray, ' more']]:
  """Inserts a space between different weights that have none."""
  # Where the weight changes and neither side is a space.
  edges = np.flatnonzero(np.diff(weights)) + 1
  edges = [i for i in edges if ' ' not in text[i - 1 : i + 1]]
  pieces = [text[i:j] for i, j in zip([0, *edges], [*edges, None])]
  return ' '.join(pieces), np.insert(weights, edges, weights[edges])


def error(prompt: str, at: int, problem: str) -> ValueError:
  """Makes an error that names the position in the prompt and the remedy."""
  return ValueError(
    f'{problem}, at character {at + 1} of the prompt {prompt!r}, before '
    f'{prompt[at : at + 16]!r}: escape each parenthesis, bracket or colon that '
    'is text by a backslash, or correct the weight'
  )
