r"""Brackets of a prompt: which of them belong together, and which are text.

Emoticons and names have brackets too. A bracket without a partner is text, and
a backslash before a bracket makes it text as well. Round and square brackets
are matched apart, as in AUTOMATIC1111's web UI: ([a)] is two groups.
"""

import re
import warnings
from typing import NamedTuple

DECIMAL = r'[-+]?(?:\d+\.?\d*|\.\d+)'
NUMBER = rf'{DECIMAL}(?:[eE][-+]?\d+)?'
# Far above useful weights, and far below those that overflow a context.
LARGEST = 1000.0
MARK = 'embedding:'  # before a learned word, in ComfyUI's syntax
# An escaped character, a learned word, a weight with the bracket that it ends,
# or a character.
SYMBOL = re.compile(
  rf'\\[()\[\]:\\|]|\b{MARK}[^\W\d][\w.-]*|:\s*{NUMBER}\s*\)|.',
  re.DOTALL | re.ASCII,
)
OPENING = {')': '(', ']': '['}


class PromptSyntaxWarning(UserWarning):
  """Warns that part of a prompt is read otherwise than it may be meant."""


class Symbol(NamedTuple):
  """A piece of a prompt.

  Attributes:
    text: as in the prompt: an escaped character with its backslash, the end of
      a group with its weight as in ':1.2)', 'embedding:name', or one character.
    at: index in the prompt.
    mark: '(', ')', '[' or ']' where it opens or closes a group, '' for text.
    partner: index in the list of symbols of the other end of the group.
  """

  text: str
  at: int
  mark: str = ''
  partner: int = -1


def split(prompt: str, marks: str = '()[]') -> tuple[list[Symbol], list[int]]:
  """Splits a prompt into symbols.

  Args:
    prompt: text.
    marks: brackets that make groups; others are text.

  Returns:
    The symbols, and the indices of brackets in the prompt that have no partner,
    which are text.
  """
  symbols = [Symbol(m[0], m.start()) for m in SYMBOL.finditer(prompt)]
  opened, alone = {'(': [], '[': []}, []
  for i, symbol in enumerate(symbols):
    # A weight ends with its bracket.
    mark = symbol.text[-1]
    if mark not in marks or symbol.text[0] == '\\':
      continue
    if mark in opened:
      opened[mark].append(i)
    elif opened[OPENING[mark]]:
      partner = opened[OPENING[mark]].pop()
      symbols[i] = symbol._replace(mark=mark, partner=partner)
      symbols[partner] = symbols[partner]._replace(
        mark=OPENING[mark], partner=i
      )
    else:
      alone.append(symbol.at + len(symbol.text) - 1)
  alone += [symbols[i].at for rest in opened.values() for i in rest]
  return symbols, sorted(alone)


def warn_of(message: str) -> None:
  """Warns of what is read otherwise than it may be meant."""
  warnings.warn(message, PromptSyntaxWarning, stacklevel=3)


def warn(prompt: str, at: int, problem: str) -> None:
  """Warns of what is read as text, with its place in the prompt."""
  warn_of(
    f'{problem}, at character {at + 1} of the prompt {prompt!r}, before '
    f'{prompt[at : at + 16]!r}'
  )


def check_weight(prompt: str, at: int, number: float) -> None:
  """Raises ValueError for a weight that is too large, with its place."""
  if abs(number) > LARGEST:
    problem = f'{number:g} is not a weight from {-LARGEST:g} to {LARGEST:g}'
    raise error(prompt, at, problem)


def error(prompt: str, at: int, problem: str) -> ValueError:
  """Makes an error that names the position in the prompt and the remedy."""
  return ValueError(
    f'{problem}, at character {at + 1} of the prompt {prompt!r}, before '
    f'{prompt[at : at + 16]!r}: escape each parenthesis, bracket or colon that '
    'is text by a backslash, or correct the number'
  )
