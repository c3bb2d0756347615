"""Marks of weight: what they mean, nested and escaped, and what is refused."""

import itertools
import random

import numpy as np
import pytest

from sdxl_jax.text import prompt_weighting

PLAIN = [
  ('', []),
  ('a fox, 3:4', [('a fox, 3:4', 1)]),
  ('a (red) fox', [('a ', 1), ('red', 1.1), (' fox', 1)]),
  ('a (red:1.3) fox', [('a ', 1), ('red', 1.3), (' fox', 1)]),
  ('(red: .5 )(b:2.)(c:+3)', [('red', 0.5), (' b', 2), (' c', 3)]),
  ('(away:-0.5)(gone:0)', [('away', -0.5), (' gone', 0)]),
  ('[dim]', [('dim', 1 / 1.1)]),
  ('()[](:3)a', [('a', 1)]),
  ('BREAK a|b', [('BREAK a|b', 1)]),
]
NESTED = [
  ('((a))', [('a', 1.21)]),
  ('([a])', [('a', 1)]),
  ('s((([[[un]]])))s', [('suns', 1)]),
  ('[[a]]', [('a', 1 / 1.21)]),
  ('((a:1.5))', [('a', 1.65)]),
  ('(a (b:3) c:2)d', [('a ', 2), ('b', 6), (' c', 2), (' d', 1)]),
  ('(a [b (c:4)])', [('a ', 1.1), ('b ', 1), ('c', 4)]),
  ('(sun:2)(flower:3)', [('sun', 2), (' flower', 3)]),
  ('(sun:2)(flower:2)', [('sunflower', 2)]),
  ('c(a:1)t', [('cat', 1)]),
]
ESCAPED = [
  (r'fox \(animal\)', [('fox (animal)', 1)]),
  (r'(fox \(animal\):2)', [('fox (animal)', 2)]),
  (r'\[a\] (b\])', [('[a] ', 1), ('b]', 1.1)]),
  (r'(style\: oil)', [('style: oil', 1.1)]),
  (r'(style: oil:1.2)', [('style: oil', 1.2)]),
  (r'[12\:30]', [('12:30', 1 / 1.1)]),
  (r'[style: oil]', [('style: oil', 1 / 1.1)]),
  (r'\\(a:2)', [('\\', 1), (' a', 2)]),
  (r'a\b \"', [(r'a\b \"', 1)]),
  ('a\\', [('a\\', 1)]),
  (r':\)', [(':)', 1)]),
]
# What is refused, at which character counted from 1, and why.
REFUSED = [
  ('a (cat', 3, 'is not closed'),
  ('a ((cat)', 3, 'is not closed'),
  ('a cat)', 6, "')' has no '('"),
  ('smile :)', 8, "')' has no '('"),
  ('(a]', 3, "']' has no '['"),
  ('([a)]', 4, "')' has no '('"),
  ('(a:red)', 4, "'red' is not a weight"),
  ('(a:)', 4, "'' is not a weight"),
  ('(a:nan)', 4, "'nan' is not a weight"),
  ('(a:inf)', 4, "'inf' is not a weight"),
  ('(a:1001)', 4, 'from -1000 to 1000'),
  ('(a:(1.2))', 4, 'is not a weight'),
  (r'(a:1\.2)', 4, 'is not a weight'),
  ('b ((a:40):40)', 3, 'exceed 1000'),
  ('[cat:dog:0.5]', 1, 'number in brackets'),
]


@pytest.mark.parametrize('prompt, expected', PLAIN + NESTED + ESCAPED)
def test_parse(prompt, expected):
  text, weights = prompt_weighting.parse(prompt)
  assert text == ''.join(piece for piece, _ in expected)
  spelled = [w for piece, w in expected for _ in piece]
  np.testing.assert_array_equal(weights, np.float32(spelled))


@pytest.mark.parametrize('prompt, place, why', REFUSED)
def test_refused(prompt, place, why):
  with pytest.raises(ValueError) as caught:
    prompt_weighting.parse(prompt)
  message = str(caught.value)
  assert why in message and repr(prompt) in message
  assert f'at character {place} ' in message and 'backslash' in message


def random_group(choose, depth):
  """(prompt, [(character, weight)]) made together, without the parser."""
  prompt, expected = '', []
  for _ in range(choose.randrange(4)):
    kind = choose.choice(['text', 'text', '(', '[', 'number'])
    if kind == 'text' or not depth:
      c = choose.choice('ab ,:()[]\\é')
      prompt += '\\' + c if c in ':()[]\\' else c
      expected.append((c, 1.0))
      continue
    inside, weighed = random_group(choose, depth - 1)
    number = choose.choice([0.5, 1.0, 1.3, 2.0])
    prompt += {
      '(': f'({inside})',
      '[': f'[{inside}]',
      'number': f'({inside}:{number})',
    }[kind]
    factor = {'(': 1.1, '[': 1 / 1.1, 'number': number}[kind]
    expected += [(c, factor * w) for c, w in weighed]
  return prompt, expected


def separated(expected):
  """A space between neighbours of different weight, where there is none."""
  found = expected[:1]
  for (before, old), (c, w) in itertools.pairwise(expected):
    if abs(old - w) > 1e-12 and ' ' not in (before, c):
      found.append((' ', w))
    found.append((c, w))
  return found


def test_random_groups():
  choose = random.Random(0)
  for _ in range(2000):
    prompt, expected = random_group(choose, depth=4)
    text, weights = prompt_weighting.parse(prompt)
    expected = separated(expected)
    assert text == ''.join(c for c, _ in expected), prompt
    spelled = [w for _, w in expected]
    np.testing.assert_allclose(weights, spelled, rtol=1e-7, err_msg=prompt)


def test_any_string_is_read_or_refused():
  choose, read, refused = random.Random(0), 0, 0
  short = map(''.join, itertools.product('([:1a)]\\', repeat=5))
  long = (
    ''.join(choose.choices('()[]()[]:\\a1.-en \né\U0001f600', k=30))
    for _ in range(20000)
  )
  for prompt in itertools.chain(short, long, ['(' * 9999 + ')' * 9999]):
    try:
      text, weights = prompt_weighting.parse(prompt)
    except ValueError as problem:
      assert repr(prompt) in str(problem)
      refused += 1
      continue
    read += 1
    assert len(text) == len(weights) <= len(prompt)
    assert (abs(weights) <= prompt_weighting.LARGEST).all()
  assert read > 1000 and refused > 1000
