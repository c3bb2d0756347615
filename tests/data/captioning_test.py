"""Tests what captions become: the rules, the chances, hosts and resuming."""

import collections
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sdxl_jax.data import batch_rows, buckets, captioning, pipeline
from sdxl_jax.data.sources import kinds
from tests.support import datasets

BUCKETS = ((16, 24), (24, 16))
SIZES = ((20, 30), (30, 20), (16, 24), (24, 16))


def expand(text):
  """Lists what the wildcards of a text can give, character by character.

  kohya's rules: {{ and }} are read from the left as braces, before anything
  else; then { up to the next } is a choice, unless there is nothing inside.
  """
  symbols, i = [], 0
  while i < len(text):
    double = text[i : i + 2] in ('{{', '}}')
    symbols.append(text[i : i + 1 + double])
    i += 1 + double
  results, i = [''], 0
  while i < len(symbols):
    end = symbols.index('}', i) if '}' in symbols[i:] else 0
    if symbols[i] == '{' and end > i + 1:
      # A brace within a choice is a part of it, doubled or not.
      inside = ''.join(s[0] for s in symbols[i + 1 : end])
      options, i = inside.split('|'), end + 1
    else:
      options, i = [symbols[i][0]], i + 1
    results = [r + option for r in results for option in options]
  return results


def order(text, c):
  """Lists what shuffling and leaving out tags can make of a text."""
  between = c.caption_separator
  mark = c.keep_tokens_separator
  if mark and mark in text:
    pieces = text.split(mark)
    # All marks behind the second one are text.
    pieces = [*pieces[:2], mark.join(pieces[2:])]
    head, middle, tail = (
      [t.strip() for t in piece.split(between) if t.strip()] for piece in pieces
    )
  else:
    tags = [tag.strip() for tag in text.strip().split(between)]
    head, middle, tail = tags[: c.keep_tokens], tags[c.keep_tokens :], []
  orders = {tuple(middle)}
  if c.shuffle_caption:
    orders = set(itertools.permutations(middle))
  if c.caption_tag_dropout_rate:
    orders = {
      kept
      for tags in orders
      for n in range(len(tags) + 1)
      for kept in itertools.combinations(tags, n)
    }
  return {', '.join([*head, *tags, *tail]) for tags in orders}


def outcomes(captions, c):
  """All texts of a record by kohya's rules, written out another time.

  One caption in the list is ours; prefix and suffix are added to each line,
  where kohya adds them to all lines at once.
  """
  texts = captions if c.several == 'random' else captions[:1]
  if c.enable_wildcard:
    texts = [line for text in texts for line in text.split('\n')]
  prefix = c.caption_prefix + ' ' if c.caption_prefix else ''
  suffix = ' ' + c.caption_suffix if c.caption_suffix else ''
  texts = [prefix + text + suffix for text in texts]
  if c.enable_wildcard:
    texts = [result for text in texts for result in expand(text)]
  if c.shuffle_caption or c.caption_tag_dropout_rate > 0:
    texts = [result for text in texts for result in order(text, c)]
  second = c.secondary_separator
  if second:
    texts = [text.replace(second, c.caption_separator) for text in texts]
  return set(texts)


RULES = [
  (['a dog', 'a cat'], {}),
  (['a dog', 'a cat'], {'several': 'random'}),
  (['a dog\nin snow'], {}),
  (['a dog\na cat', 'a fox'], {'enable_wildcard': True, 'several': 'random'}),
  (['a {red|blue|} dog, {x|y}'], {'enable_wildcard': True}),
  (['a {red} dog {}, {a|{b}'], {'enable_wildcard': True}),
  (['{{a|b}} {c|{{d}}} }} {{{e|f}}} {g'], {'enable_wildcard': True}),
  (['a {red|blue} dog'], {}),
  (['x\ny'], {'caption_prefix': '{p|q},', 'enable_wildcard': True}),
  (['x'], {'caption_prefix': 'p', 'caption_suffix': 's'}),
  (['a, b, c ,d'], {'shuffle_caption': True}),
  (['a, b, c, d, e'], {'shuffle_caption': True, 'keep_tokens': 2}),
  (['a, b'], {'shuffle_caption': True, 'keep_tokens': 5}),
  (['a, , b,'], {'shuffle_caption': True}),
  (
    ['k, ||| a, b, , c'],
    {'shuffle_caption': True, 'keep_tokens_separator': '|||'},
  ),
  (
    ['k, l ||| a, b ||| z ||| y, x'],
    {'shuffle_caption': True, 'keep_tokens_separator': '|||'},
  ),
  (
    ['k, a, b'],
    {
      'shuffle_caption': True,
      'keep_tokens': 1,
      'keep_tokens_separator': '|||',
    },
  ),
  (['k ||| a'], {'keep_tokens_separator': '|||'}),
  (['a, b, c, d'], {'caption_tag_dropout_rate': 0.5, 'keep_tokens': 1}),
  (
    ['a. b. c, d'],
    {
      'shuffle_caption': True,
      'caption_tag_dropout_rate': 0.4,
      'caption_separator': '.',
    },
  ),
  (
    ['a;;b, c, d;;e'],
    {'shuffle_caption': True, 'secondary_separator': ';;'},
  ),
  (['a;;b'], {'secondary_separator': ';;'}),
  (
    ['{x|y}, a, b\nc'],
    {
      'enable_wildcard': True,
      'shuffle_caption': True,
      'caption_prefix': 'p,',
      'keep_tokens': 1,
    },
  ),
]


def draw(captions, c, n=1500, seed=0):
  """Counts the texts of so many passes."""
  example = {'caption': captions[0], 'captions': captions}
  found = (c.choose(example, seed, p, 3)['caption'] for p in range(n))
  return collections.Counter(found)


@pytest.mark.parametrize('captions, fields', RULES)
def test_the_texts_are_those_of_the_rules(captions, fields):
  """None else, and each of them in some pass."""
  c = captioning.Captioning(**fields)
  expected = outcomes(captions, c)
  assert set(draw(captions, c)) == expected
  # What is checked and stored are such texts, too.
  assert {*c.longest(captions)} <= expected
  if not c.has_tags:
    assert set(c.alternatives(captions)) == expected


def test_captions_are_as_they_are_by_default():
  c = captioning.DEFAULT
  example = {'caption': ' a {b|c}\n, d', 'captions': ('x', 'y')}
  assert c.choose(example, 0, 1, 2) is example
  assert not c.changes and not c.facts


def test_a_text_of_one_record_and_pass_is_one_text():
  c = captioning.Captioning(shuffle_caption=True)
  example = {'caption': 'a, b, c, d, e, f, g, h'}

  def text(*key):
    return c.choose(example, *key)['caption']

  keys = list(itertools.product(range(3), range(3), range(3)))
  assert len({text(*key) for key in keys}) > 20  # each its own
  assert [text(*key) for key in keys] == [text(*key) for key in keys]


def test_what_a_seed_chooses_never_changes():
  """The order of the draws decides the captions of every run."""
  c = captioning.Captioning(
    several='random',
    enable_wildcard=True,
    shuffle_caption=True,
    keep_tokens=1,
    caption_tag_dropout_rate=0.25,
  )
  captions = 'k, a, {b|c}, d', 'l, e\nm, f, g'
  example = {'caption': captions[0], 'captions': captions}
  found = [c.choose(example, 3, p, 5)['caption'] for p in range(6)]
  expected = ['k, a, d', 'k, d, a, c', 'm, f, g', 'l', 'm, g, f', 'm, g, f']
  assert found == expected


def within(count, n, p):
  """Whether a count of n draws is within five deviations of n p."""
  return abs(count - n * p) < 5 * np.sqrt(n * p * (1 - p))


def test_choices_are_uniform_in_each_step():
  """A caption, then a line of it, then an option."""
  c = captioning.Captioning(several='random', enable_wildcard=True)
  captions, n = ['a\n{b|c}', 'd', '{e|e|f}'], 20_000
  expected = {'a': 1 / 6, 'b': 1 / 12, 'c': 1 / 12, 'd': 1 / 3}
  expected |= {'e': 2 / 9, 'f': 1 / 9}
  assert c.alternatives(captions) == pytest.approx(expected)
  found = draw(captions, c, n)
  assert all(within(found[text], n, p) for text, p in expected.items())


def test_every_order_is_as_likely():
  c = captioning.Captioning(shuffle_caption=True, keep_tokens=1)
  n = 12_000
  found = draw(['k, a, b, c'], c, n)
  assert len(found) == 6
  assert all(within(count, n, 1 / 6) for count in found.values())


def test_each_tag_is_left_out_at_the_rate():
  rate, n = 0.3, 10_000
  c = captioning.Captioning(caption_tag_dropout_rate=rate, keep_tokens=1)
  found = draw(['k, a, b'], c, n)
  for tag in 'ab':
    count = sum(v for text, v in found.items() if tag in text.split(', '))
    assert within(count, n, 1 - rate)
  # Independently of each other.
  assert within(found['k'], n, rate**2)
  assert all(text.startswith('k') for text in found)


def test_too_many_texts_for_a_cache():
  c = captioning.Captioning(enable_wildcard=True)
  assert len(c.alternatives(['{a|b}{c|d}{e|f}{g|h}{i|j}'])) == 32
  with pytest.raises(ValueError, match='more than 32 texts, the limit'):
    c.alternatives(['{a|b}{c|d}{e|f}{g|h}{i|j}\nk'])


def test_parts_of_a_mixture_have_fields_of_their_own():
  """As kohya's subsets; a part without any has those of all."""
  own = captioning.Captioning(caption_suffix='own')
  c = captioning.Captioning(caption_suffix='all', parts=(('mine', own),))
  found = {
    part: c.of({'caption': 'x', 'part': part}).caption_suffix
    for part in ('mine', 'others')
  }
  assert found == {'mine': 'own', 'others': 'all'}
  assert c.of({'caption': 'x'}) is c and c.has_effect
  plain = captioning.Captioning(parts=(('mine', own),))
  assert plain.has_effect and not plain.changes


# The same through the pipeline.

FIELDS = {
  'several': 'random',
  'enable_wildcard': True,
  'shuffle_caption': True,
  'caption_tag_dropout_rate': 0.2,
  'keep_tokens': 1,
  'caption_prefix': 'p,',
}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Images with a list of captions each."""
  examples = []
  for i in range(11):
    texts = [f'{i}, a, b, {{c|d}}, e', f'{i} x, y, z\n{i} v, w']
    examples.append(datasets.example(i, SIZES[i % 4]) | {'text': texts})
  settings = datasets.write_folder(tmp_path_factory.mktemp('images'), examples)
  return kinds.make_source('folder', settings, workers=0, several=True)


def tokenize(captions):
  codes = [[ord(c) for c in text[:77].ljust(77)] for text in captions]
  return np.stack([codes, codes], 1), [text[20:] for text in captions]


def make(source, batch_size=4, host=0, hosts=1, fields=FIELDS, **options):
  schedule = buckets.Schedule(source.sizes, BUCKETS, 5, batch_size)
  options = {'num_threads': 2, 'caption_dropout': 0.2} | options
  options = batch_rows.BatchOptions(
    captions=captioning.Captioning(**fields), **options
  )
  rows = range(host, batch_size, hosts)
  return pipeline.make_batches(source, tokenize, schedule, rows, options)


def texts(batch):
  return [''.join(map(chr, row[0])).rstrip() for row in batch['tokens']]


def read(batches, n):
  """Returns {(record, pass): text} of n batches, and closes them."""
  found, start = {}, batches.get_state()['batches']
  rows = batches._rows.rows
  for step in range(start, start + n):
    _, ids, passes = batches.schedule.records(step)
    _, batch = next(batches)
    keys = [(int(ids[row]), int(passes[row])) for row in rows]
    found |= dict(zip(keys, texts(batch), strict=True))
  batches.close()
  return found


def test_batches_hold_texts_of_their_records(source):
  c = captioning.Captioning(**FIELDS)
  found = read(make(source), 60)
  assert len(found) == 240
  for (record, _), text in found.items():
    assert text in outcomes(list(source[record]['captions']), c) | {''}
  dropped = sum(text == '' for text in found.values())
  assert within(dropped, 240, 0.2)
  # A record becomes many texts.
  assert len({text for (i, _), text in found.items() if i == 3}) > 10


def test_two_hosts_read_the_same(source):
  whole = read(make(source), 20)
  shares = [read(make(source, host=i, hosts=2), 20) for i in range(2)]
  assert not shares[0].keys() & shares[1].keys()
  assert whole == shares[0] | shares[1]


@pytest.mark.parametrize(
  'options', [{'num_threads': 0, 'prefetch': 0}, {'batch_size': 8}]
)
def test_threads_and_batch_size_do_not_matter(source, options):
  whole = read(make(source), 20)
  other = read(make(source, **options), 10)
  same = whole.keys() & other.keys()
  assert len(same) > 30
  assert all(whole[key] == other[key] for key in same)


def test_resuming_amid_a_pass(source):
  whole = read(make(source), 30)
  first = make(source)
  for _ in range(7):  # 28 of passes of 5 and 6
    next(first)
  state = json.loads(json.dumps(first.get_state()))
  first.close()
  resumed = make(source, host=1, hosts=2)
  resumed.set_state(state)
  found = read(resumed, 23)
  assert len(found) == 46
  assert found.items() <= whole.items()


def test_a_pass_without_captions(source):
  """Every third one, the first two of which are not."""
  fields = {'caption_dropout_every_n_epochs': 3}
  found = read(make(source, fields=fields, caption_dropout=0.0), 40)
  for (_, data_pass), text in found.items():
    assert (text == '') == (data_pass % 3 == 2)


def test_no_crop_or_flip_depends_on_captions(source):
  batches = make(source, flip_probability=0.5)
  plain = make(source, fields={}, flip_probability=0.5)
  for _ in range(8):
    a, b = next(batches)[1], next(plain)[1]
    np.testing.assert_array_equal(a['image'], b['image'])
    # The same captions are dropped.
    assert [t == '' for t in texts(a)] == [t == '' for t in texts(b)]
  batches.close()
  plain.close()


def test_what_is_cut_is_counted_of_what_is_used(source):
  """The tokenizer above cuts behind 20 characters."""
  fields = {'caption_suffix': 'a suffix that is long'}
  batches = make(source, fields=fields, num_threads=0, caption_dropout=0.0)
  next(batches)
  assert batches.counts()['cut_captions'] == 4
  batches.close()


PROGRAM = """
from sdxl_jax.data import captioning
c = captioning.Captioning(shuffle_caption=True, caption_tag_dropout_rate=0.3)
example = {'caption': 'a, b, c, d, e'}
print([c.choose(example, 7, p, 2)['caption'] for p in range(40)])
"""


def test_another_process_chooses_alike():
  """Python's own hashes, which are others there, play no part."""
  c = captioning.Captioning(shuffle_caption=True, caption_tag_dropout_rate=0.3)
  example = {'caption': 'a, b, c, d, e'}
  here = [c.choose(example, 7, p, 2)['caption'] for p in range(40)]
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env=os.environ | {'PYTHONHASHSEED': '3'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == str(here)
