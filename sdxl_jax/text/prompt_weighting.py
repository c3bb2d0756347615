r"""Prompt weighting: (red:1.3) fox on ((snow)), [blurred].

  (words:1.3)   weight 1.3
  (words)       weight 1.1
  [words]       weight 1 / 1.1
  \( \) \[ \] \: \\   the character itself; any other backslash is text
  BREAK         the next chunk of 77 tokens begins, see chunking

This is the syntax of AUTOMATIC1111's web UI, 'a1111'. Nested groups multiply,
and a word ends where the weight changes. ComfyUI's, 'comfyui', differs: an
inner (words:1.3) has its weight whatever is around it, and square brackets and
BREAK are text. A bracket without a partner is text in both, with a warning.
Prompts that change during sampling are resolved before, see prompt_schedule.
"""

import re

import numpy as np
from jaxtyping import Float

from sdxl_jax.text import prompt_brackets, prompt_schedule

SYNTAXES = 'a1111', 'comfyui'
MARKS = {'a1111': '()[]', 'comfyui': '()'}
DEFAULT_WEIGHTS = {')': 1.1, ']': 1 / 1.1}
ESCAPED = {'a1111': '()[]:|\\', 'comfyui': '()'}
BREAK = re.compile(r'\s*\bBREAK\b\s*')
# What may be meant as a weight behind a group's last colon.
LIKE_A_NUMBER = re.compile(r':\s*((?:[-+.,]*\d|nan|inf)[^:()\[\]]*|)$', re.I)

Text = tuple[str, Float[np.ndarray, ' _']]  # with the weight of each character


def parse(prompt: str, syntax: str = 'a1111') -> Text:
  """Returns a prompt's text without marks, and the weight of each character.

  The weights are float32, and 1 outside of groups. A space separates different
  weights: (sun:1.2)(flower:2) becomes 'sun flower'. BREAK stays in the text,
  see `split_at_breaks`. What is read otherwise than it may be meant is named in
  a prompt_brackets.PromptSyntaxWarning.

  Args:
    prompt: text with marks.
    syntax: one of SYNTAXES.

  Raises:
    ValueError: on a weight that is too large, with its position, and on what
      changes during sampling.
  """
  if syntax == 'a1111':
    prompt_schedule.check_constant(prompt)
  symbols, alone = prompt_brackets.split(prompt, MARKS[syntax])
  for at in alone:
    prompt_brackets.warn(
      prompt, at, f'{prompt[at]!r} has no partner and is read as text'
    )
  # Of each character its weight, and whether no outer group changes it.
  text, weights = [], np.ones(len(prompt))
  final, begins = np.zeros(len(prompt), bool), {}
  for i, symbol in enumerate(symbols):
    if symbol.mark in DEFAULT_WEIGHTS:
      inside = slice(begins[symbol.partner], len(text))
      weight = weight_of(prompt, symbol)
      outer = ~final[inside]
      weights[inside][outer] *= weight
      final[inside] |= syntax == 'comfyui' and symbol.text[0] == ':'
      largest = prompt_brackets.LARGEST
      if (abs(weights[inside]) > largest).any():
        problem = f'the weights of groups within groups exceed {largest:g}'
        raise prompt_brackets.error(prompt, symbols[symbol.partner].at, problem)
    elif symbol.mark:
      begins[i] = len(text)
    else:
      is_escaped = symbol.text[0] == '\\' and symbol.text[-1] in ESCAPED[syntax]
      text += symbol.text[1:] if is_escaped and symbol.text[1:] else symbol.text
  # Rounding to float32 makes 1.1 / 1.1 equal 1.
  return separate(''.join(text), np.float32(weights[: len(text)]))


def weight_of(prompt: str, end: prompt_brackets.Symbol) -> float:
  """Returns the weight of the group that a symbol closes.

  Raises:
    ValueError: for one that is too large.
  """
  if end.text[0] != ':':
    before = LIKE_A_NUMBER.search(prompt[: end.at])
    if end.mark == ')' and before:
      prompt_brackets.warn(
        prompt,
        before.start(),
        f'{before[1]!r} is no weight and is read as text of weight 1.1',
      )
    return DEFAULT_WEIGHTS[end.mark]
  number = float(end.text[1:-1])
  prompt_brackets.check_weight(prompt, end.at + 1, number)
  return number


def split_at_breaks(prompt: str, syntax: str = 'a1111') -> list[Text]:
  """Parses a prompt into the parts that BREAK divides it into."""
  text, weights = parse(prompt, syntax)
  marks = list(BREAK.finditer(text)) if syntax == 'a1111' else []
  begins = [0, *(mark.end() for mark in marks)]
  ends = [*(mark.start() for mark in marks), len(text)]
  return [(text[i:j], weights[i:j]) for i, j in zip(begins, ends)]


def separate(
  text: str, weights: Float[np.ndarray, ' characters']
) -> tuple[str, Float[np.ndarray, ' more']]:
  """Inserts a space between different weights that have none."""
  # Where the weight changes and neither side is a space.
  edges = np.flatnonzero(np.diff(weights)) + 1
  edges = [i for i in edges if ' ' not in text[i - 1 : i + 1]]
  pieces = [text[i:j] for i, j in zip([0, *edges], [*edges, None])]
  return ' '.join(pieces), np.insert(weights, edges, weights[edges])
