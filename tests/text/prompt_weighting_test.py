"""Marks of weight: what they mean, nested and escaped, and what is odd."""

import itertools
import random
import warnings

import numpy as np
import pytest

from sdxl_jax.text import prompt_brackets, prompt_weighting
from sdxl_jax.text.prompt_brackets import PromptSyntaxWarning

IGNORED = 'ignore::sdxl_jax.text.prompt_brackets.PromptSyntaxWarning'
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
  ('hatsune_(vocaloid)', [('hatsune_', 1), (' vocaloid', 1.1)]),
]
NESTED = [
  ('((a))', [('a', 1.21)]),
  ('([a])', [('a', 1)]),
  ('s((([[[un]]])))s', [('suns', 1)]),
  ('[[a]]', [('a', 1 / 1.21)]),
  ('((a:1.5))', [('a', 1.65)]),
  ('(a (b:3) c:2)d', [('a ', 2), ('b', 6), (' c', 2), (' d', 1)]),
  ('([a)]', [('a', 1)]),
  ('(a [b (c:4)])', [('a ', 1.1), ('b ', 1), ('c', 4)]),
  ('(sun:2)(flower:3)', [('sun', 2), (' flower', 3)]),
  ('(sun:2)(flower:2)', [('sunflower', 2)]),
  ('c(a:1)t', [('cat', 1)]),
]
ESCAPED = [
  (r'fox \(animal\)', [('fox (animal)', 1)]),
  (r'(fox \(animal\):2)', [('fox (animal)', 2)]),
  (r'\[a\] (b\])', [('[a] ', 1), ('b]', 1.1)]),
  (
    '(embedding:a.b-c)(embedding:d:2)',
    [('embedding:a.b-c', 1.1), (' embedding:d', 2)],
  ),
  (r'(style\: oil)', [('style: oil', 1.1)]),
  (r'(style: oil:1.2)', [('style: oil', 1.2)]),
  (r'[12\:30]', [('12:30', 1 / 1.1)]),
  (r'[style: oil]', [('style: oil', 1 / 1.1)]),
  (r'\\(a:2)', [('\\', 1), (' a', 2)]),
  (r'a\b \"', [(r'a\b \"', 1)]),
  ('a\\', [('a\\', 1)]),
  (r':\)', [(':)', 1)]),
]
# What is read as text, or with weight 1.1, and the character, counted from 1,
# that a warning names.
ODD = [
  ('a (cat', 3, 'a (cat', {}),
  ('a ((cat)', 3, 'a ( cat', {' cat': 1.1}),
  ('a cat)', 6, 'a cat)', {}),
  ('a (red:1.2) smile :)', 20, 'a red smile :)', {'red': 1.2}),
  ('>:( (red:1.2)', 3, '>:( red', {'red': 1.2}),
  ('(a:1.2', 1, '(a:1.2', {}),
  ('a:1.2)', 6, 'a:1.2)', {}),
  ('(a]', 3, '(a]', {}),
  ('(a:)', 3, 'a:', {'a:': 1.1}),
  ('(a:1,2)', 3, 'a:1,2', {'a:1,2': 1.1}),
  ('(a:1.2.3)', 3, 'a:1.2.3', {'a:1.2.3': 1.1}),
  ('(a:nan)', 3, 'a:nan', {'a:nan': 1.1}),
  (r'(a:1\.2)', 3, r'a:1\.2', {r'a:1\.2': 1.1}),
]
# What is refused, at which character, and why.
REFUSED = [
  ('(a:1001)', 4, 'from -1000 to 1000'),
  ('b ((a:40):40)', 3, 'exceed 1000'),
]
# Where ComfyUI's syntax differs: an inner weight stays as it is.
COMFYUI = [
  ('a (red:1.3) ((fox))', [('a ', 1), ('red', 1.3), (' ', 1), ('fox', 1.21)]),
  ('((a:1.5))', [('a', 1.5)]),
  ('((a (b:0.5)))', [('a ', 1.21), ('b', 0.5)]),
  ('(a (b:3) (c):2)d', [('a ', 2), ('b', 3), (' ', 2), ('c', 2.2), (' d', 1)]),
  (r'[a] \(b\) \[c', [(r'[a] (b) \[c', 1)]),
  ('[a:b:3] BREAK [c|d]', [('[a:b:3] BREAK [c|d]', 1)]),
]


@pytest.mark.parametrize('prompt, expected', PLAIN + NESTED + ESCAPED)
def test_parse(prompt, expected):
  check(*prompt_weighting.parse(prompt), expected)


def check(text, weights, expected):
  assert text == ''.join(piece for piece, _ in expected)
  spelled = [w for piece, w in expected for _ in piece]
  np.testing.assert_array_equal(weights, np.float32(spelled))


@pytest.mark.parametrize('prompt, expected', COMFYUI)
def test_comfyui(prompt, expected):
  check(*prompt_weighting.parse(prompt, 'comfyui'), expected)


@pytest.mark.parametrize('prompt, place, text, weighted', ODD)
def test_odd_marks_are_text(prompt, place, text, weighted):
  with pytest.warns(PromptSyntaxWarning) as caught:
    found, weights = prompt_weighting.parse(prompt)
  messages = [str(w.message) for w in caught]
  assert any(f'at character {place} of the prompt' in m for m in messages)
  assert found == text
  expected = np.ones(len(text), np.float32)
  for piece, weight in weighted.items():
    expected[text.index(piece) :][: len(piece)] = weight
  np.testing.assert_array_equal(weights, expected)


def test_names_and_styles_give_no_warning():
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    for prompt in ('hatsune_miku_(vocaloid)', '(style: oil)', r'a \(b\) :D'):
      prompt_weighting.parse(prompt)


@pytest.mark.parametrize('prompt, place, why', REFUSED)
def test_refused(prompt, place, why):
  with pytest.raises(ValueError) as caught:
    prompt_weighting.parse(prompt)
  message = str(caught.value)
  assert why in message and repr(prompt) in message
  assert f'at character {place} ' in message and 'backslash' in message


@pytest.mark.parametrize('prompt', ['[cat:dog:0.5]', '([cat:2])', 'a [b|c]'])
def test_a_text_that_changes_is_no_text(prompt):
  with pytest.raises(ValueError, match='changes during sampling'):
    prompt_weighting.parse(prompt)


def test_split_at_breaks():
  parts = prompt_weighting.split_at_breaks('a (b BREAK c:2)BREAK d BREAKS')
  assert [text for text, _ in parts] == ['a b', 'c', 'd BREAKS']
  assert [w.tolist() for _, w in parts] == [[1, 1, 2], [2], [1] * 8]
  ((text, _),) = prompt_weighting.split_at_breaks('a BREAK b', 'comfyui')
  assert text == 'a BREAK b'


def random_group(choose, depth):
  """(prompt, [(character, weight)]) made together, without the parser."""
  prompt, expected = '', []
  for _ in range(choose.randrange(4)):
    kind = choose.choice(['text', 'text', '(', '[', 'number'])
    if kind == 'text' or not depth:
      c = choose.choice('ab ,:()[]|\\é')
      prompt += '\\' + c if c in ':()[]|\\' else c
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


@pytest.mark.filterwarnings(IGNORED)
def test_random_groups():
  choose = random.Random(0)
  for _ in range(2000):
    prompt, expected = random_group(choose, depth=4)
    text, weights = prompt_weighting.parse(prompt)
    expected = separated(expected)
    assert text == ''.join(c for c, _ in expected), prompt
    spelled = [w for _, w in expected]
    np.testing.assert_allclose(weights, spelled, rtol=1e-7, err_msg=prompt)


@pytest.mark.filterwarnings(IGNORED)
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
    assert (abs(weights) <= prompt_brackets.LARGEST).all()
  assert read > 10000 and refused > 100
