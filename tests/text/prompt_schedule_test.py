"""Prompts that change during sampling: examples of the syntax's own documents.

The expected schedules of ten steps are those that AUTOMATIC1111's web UI gives
for these prompts (its prompt_parser's examples), where neighbours with the same
text are one entry.
"""

import itertools
import random

import pytest

from sdxl_jax.text import prompt_schedule

TURNS = [(1, 'a'), (2, '(b:1.1)')]
SCHEDULES = {
  'test': [(10, 'test')],
  'a [b:3]': [(3, 'a '), (10, 'a b')],
  'a [b: 3]': [(3, 'a '), (10, 'a b')],
  'a [[[b]]:2]': [(2, 'a '), (10, 'a [[b]]')],
  '[(a:2):3]': [(3, ''), (10, '(a:2)')],
  'a [b : c : 1] d': [(1, 'a b  d'), (10, 'a  c  d')],
  'a[b:[c:d:2]:1]e': [(1, 'abe'), (2, 'ace'), (10, 'ade')],
  'a [unbalanced': [(10, 'a [unbalanced')],
  'a [b:.5] c': [(5, 'a  c'), (10, 'a b c')],
  '((a][:b:c [d:3]': [(3, '((a][:b:c '), (10, '((a][:b:c d')],
  '[a|(b:1.1)]': [(i, ('(b:1.1)', 'a')[i % 2]) for i in range(1, 11)],
  '[fe|]male': [(i, ('male', 'female')[i % 2]) for i in range(1, 11)],
  '[fe|||]male': [
    *((1, 'female'), (4, 'male'), (5, 'female'), (8, 'male')),
    *((9, 'female'), (10, 'male')),
  ],
  # Not among its examples.
  '[a::3] [b]': [(3, 'a [b]'), (10, ' [b]')],
  '[a:b:0.25]': [(2, 'a'), (10, 'b')],
  '[a:b:0]': [(10, 'b')],
  '[a:b:-1]': [(10, 'b')],
  '[a:b:99]': [(10, 'a')],
  '[a:b:1.0]': [(10, 'a')],
  '[a:b:-0.5]': [(10, 'b')],
  f'[a:b:1{"0" * 400}.0]': [(10, 'a')],
  f'[a:b:-1{"0" * 400}.0]': [(10, 'b')],
  f'[a:b:1{"0" * 5000}]': [(10, 'a')],
  r'\[a:b:3\] (c|d)': [(10, r'\[a:b:3\] (c|d)')],
  r'[a\:b:3]': [(3, ''), (10, r'a\:b')],
  '([red:blue:4] fox:1.2)': [(4, '(red fox:1.2)'), (10, '(blue fox:1.2)')],
  '[style: oil]': [(10, '[style: oil]')],
  '[a|[b:c:5]]': [
    *((1, 'a'), (2, 'b'), (3, 'a'), (4, 'b'), (5, 'a'), (6, 'c'), (7, 'a')),
    *((8, 'c'), (9, 'a'), (10, 'c')),
  ],
}


@pytest.mark.parametrize('prompt', SCHEDULES)
def test_by_step(prompt):
  assert prompt_schedule.by_step(prompt, 10) == SCHEDULES[prompt]


def test_what_has_no_meaning():
  with pytest.raises(ValueError, match='no number of steps, at character 3'):
    prompt_schedule.by_step('a [b|c:0.5]', 10)
  for prompt in ('[a:b:c]', '[a:b:c:3]'):
    with pytest.warns(match='with a number, and read as text'):
      assert prompt_schedule.by_step(prompt, 10) == [(10, prompt)]
  deep = '[' * 60 + 'a' + ':1]' * 60
  with pytest.raises(ValueError, match='more than 50 edits'):
    prompt_schedule.by_step(deep, 10)


def test_combined():
  combined = prompt_schedule.combined
  assert combined('a photo at 12:30') == [('a photo at 12:30', 1.0)]
  assert combined('a cat :1.2 AND (a dog:2) AND x:-.5') == [
    *(('a cat', 1.2), ('(a dog:2)', 1.0), ('x', -0.5)),
  ]
  assert combined('A LAND AND\nAND') == [('A LAND', 1), ('', 1), ('', 1)]


@pytest.mark.parametrize('weight', ['1001', '-1000.5', '9' * 40, '9' * 400])
def test_weights_of_prompts_that_are_too_large(weight):
  at = f'at character {len("a:1000 AND b:") + 1} of'
  with pytest.raises(ValueError, match=f'not a weight from -1000 to .*{at}'):
    prompt_schedule.combined(f'a:1000 AND b:{weight} AND c')


def random_edit(choose, depth):
  """(prompt, function of the step) made together, without the parser."""
  pieces = []
  for _ in range(choose.randrange(1, 4)):
    kind = choose.choice(['text', 'edit', 'turns'] if depth else ['text'])
    if kind == 'text':
      text = choose.choice(['a', '(b:1.2)', ' c ', '[d]', r'\[', r'\|'])
      pieces.append((text, lambda step, text=text: text))
      continue
    inside = [random_edit(choose, depth - 1) for _ in range(2)]
    (x, x_at), (y, y_at) = inside
    if kind == 'edit':
      when = choose.randrange(8)
      at = lambda step, x=x_at, y=y_at, w=when: (x if step <= w else y)(step)  # noqa: E731
      pieces.append((f'[{x}:{y}:{when}]', at))
    else:
      at = lambda step, x=x_at, y=y_at: (x if step % 2 else y)(step)  # noqa: E731
      pieces.append((f'[{x}|{y}]', at))
  prompt = ''.join(text for text, _ in pieces)
  return prompt, lambda step: ''.join(at(step) for _, at in pieces)


def test_random_edits():
  choose = random.Random(0)
  for _ in range(500):
    prompt, at = random_edit(choose, 3)
    found = prompt_schedule.by_step(prompt, 7)
    texts = []
    for end, text in found:
      texts += [text] * (end - len(texts))
    assert texts == [at(step) for step in range(1, 8)], prompt
    assert all(x != y for (_, x), (_, y) in itertools.pairwise(found))
