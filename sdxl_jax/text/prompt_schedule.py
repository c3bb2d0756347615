"""Prompts that change during sampling, and prompts that are combined.

  [from:to:when]   `from` for the first steps, then `to`; either may be empty
  [to:when]        nothing, then `to`
  [a|b]            a and b in turns, one step each
  a :1.2 AND b     two prompts with a prediction each: guidance adds them up,
                   with the weight behind a part's last colon, or 1

`when` is a number of steps, or with a point a share of them. This is the syntax
of AUTOMATIC1111's web UI; the steps are counted as it documents them.
"""

import itertools
import re
from typing import NamedTuple

from sdxl_jax.text import prompt_brackets

AND = re.compile(r'\bAND\b')
PART = re.compile(
  rf'(.*?)(?:\s*:\s*({prompt_brackets.DECIMAL}))?\s*', re.DOTALL
)
WHEN = re.compile(rf'\s*{prompt_brackets.DECIMAL}\s*', re.ASCII)
DEEPEST = 50  # edits within edits


class Edit(NamedTuple):
  """[from:to:when], or [a|b] without `when`."""

  texts: tuple['Items', ...]
  when: str | None = None


Items = tuple[str | Edit, ...]


def combined(prompt: str) -> list[tuple[str, float]]:
  """Splits a prompt at AND into its parts and their weights.

  Raises:
    ValueError: for a weight that is too large.
  """
  parts = AND.split(prompt)
  if len(parts) == 1:
    return [(prompt, 1.0)]
  matches = [PART.fullmatch(part) for part in parts]
  found, begin = [], 0
  for match in matches:
    weight = 1.0 if match[2] is None else float(match[2])
    prompt_brackets.check_weight(prompt, begin + max(0, match.start(2)), weight)
    found.append((match[1].strip(), weight))
    begin += len(match[0]) + len('AND')
  return found


def by_step(prompt: str, steps: int) -> list[tuple[int, str]]:
  """Returns (last step, counted from 1, and text up to it) of a prompt.

  Args:
    prompt: text, without AND.
    steps: of the sampler.

  Raises:
    ValueError: for edits too deep within each other, or with | and a number.
  """
  items = parse(prompt)
  ends = {steps, *switches(items, steps)}
  texts = [(end, text_at(items, end, steps)) for end in sorted(ends)]
  # Of neighbours with the same text the last one has the last step.
  groups = itertools.groupby(texts, lambda entry: entry[1])
  return [list(group)[-1] for _, group in groups]


def check_constant(prompt: str) -> None:
  """Raises ValueError for a prompt that changes during sampling."""
  items = parse(prompt)
  if any(isinstance(item, Edit) for item in items):
    raise ValueError(
      f'the prompt {prompt!r} changes during sampling, by [from:to:when] or '
      '[a|b], and here one text is needed: escape the brackets by a backslash'
    )


def parse(prompt: str) -> Items:
  """Parses a prompt into texts and edits."""
  symbols, _ = prompt_brackets.split(prompt)
  return parse_range(prompt, symbols, 0, len(symbols), 0)


def parse_range(
  prompt: str,
  symbols: list[prompt_brackets.Symbol],
  begin: int,
  end: int,
  depth: int,
) -> Items:
  """Parses symbols `begin` to `end`, which are within `depth` edits."""
  if depth > DEEPEST:
    raise prompt_brackets.error(
      prompt, symbols[begin - 1].at, f'more than {DEEPEST} edits in each other'
    )
  items, i = [], begin
  while i < end:
    symbol = symbols[i]
    edit = None
    if symbol.mark == '[' and symbol.partner < end:
      edit = parse_edit(prompt, symbols, i, depth)
    items.append(symbol.text if edit is None else edit)
    i = i + 1 if edit is None else symbol.partner + 1
  # Join what is text.
  joined = []
  for item in items:
    if joined and isinstance(item, str) and isinstance(joined[-1], str):
      joined[-1] += item
    else:
      joined.append(item)
  return tuple(joined)


def parse_edit(
  prompt: str, symbols: list[prompt_brackets.Symbol], begin: int, depth: int
) -> Edit | None:
  """Parses the group that begins at a symbol; None if it is no edit."""
  end = symbols[begin].partner
  # Separators that are in no group of their own.
  found, i = {':': [], '|': []}, begin + 1
  while i < end:
    symbol = symbols[i]
    if symbol.text in found:
      found[symbol.text].append(i)
    i = symbol.partner if begin < i < symbol.partner < end else i
    i += 1
  colons, bars = found[':'], found['|']
  last = colons[-1] if colons else begin
  when = prompt[symbols[last].at + 1 : symbols[end].at]
  has_number = bool(colons) and WHEN.fullmatch(when) is not None
  at = symbols[begin].at
  if bars and has_number:
    raise prompt_brackets.error(prompt, at, '[a|b] takes no number of steps')
  if not bars and (not has_number or len(colons) > 2):
    if len(colons) > 1:
      prompt_brackets.warn(
        prompt, at, 'not [from:to:when] with a number, and read as text'
      )
    return None
  # Texts between the separators.
  cuts = bars or colons[:-1]
  begins = [begin + 1, *(cut + 1 for cut in cuts)]
  ends = [*cuts, end if bars else last]
  texts = tuple(
    parse_range(prompt, symbols, i, j, depth + 1) for i, j in zip(begins, ends)
  )
  if bars:
    return Edit(texts)
  return Edit(texts if len(texts) == 2 else ((), *texts), when.strip())


def switch_step(when: str, steps: int) -> int:
  """Returns the last step before a switch, from 0 to the number of steps."""
  # A number of hundreds of digits is infinity as float.
  if '.' in when:
    return int(min(max(float(when), 0.0), 1.0) * steps)
  return int(min(max(float(when), 0.0), steps))


def switches(items: Items, steps: int) -> set[int]:
  """Returns the last steps, from 1 on, before texts that may differ."""
  found = set()
  for item in items:
    if isinstance(item, str):
      continue
    if item.when is None:
      return set(range(1, steps))
    found |= {switch_step(item.when, steps)}
    for text in item.texts:
      found |= switches(text, steps)
  return {step for step in found if 0 < step < steps}


def text_at(items: Items, step: int, steps: int) -> str:
  """Returns the text of a step, counted from 1."""
  texts = []
  for item in items:
    if isinstance(item, str):
      texts.append(item)
    elif item.when is None:
      chosen = item.texts[(step - 1) % len(item.texts)]
      texts.append(text_at(chosen, step, steps))
    else:
      chosen = item.texts[step > switch_step(item.when, steps)]
      texts.append(text_at(chosen, step, steps))
  return ''.join(texts)
