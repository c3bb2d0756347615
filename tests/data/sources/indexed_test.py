"""Tests the rows of an index: problems, stamps, keys, names."""

import io
import math

import pytest

from sdxl_jax.data.sources import (
  captions,
  column_values,
  index,
  indexed,
  kinds,
  measuring,
  record_filters,
)
from tests.support import datasets

IMAGE = datasets.encode(datasets.ramp(40, 60), 'BMP')
TEXT = captions.Caption('a dog')


def stamp(image=IMAGE, caption='a dog', score=None):
  return indexed.stamp(io.BytesIO(image), caption, score)


def test_stamps():
  changed = bytearray(IMAGE)
  changed[-1] ^= 1
  stamps = [
    stamp(),
    stamp(bytes(changed)),
    stamp(b'\0' + IMAGE[1:]),
    stamp(IMAGE + b'\0'),
    stamp(caption='a cat'),
    stamp(score=5.0),
    stamp(score=5.5),
    stamp(b''),
  ]
  assert len(set(stamps)) == len(stamps)
  assert stamp() == stamp() < 2**64
  file = io.BytesIO(IMAGE)
  indexed.stamp(file, '')
  assert file.tell() == 0


def test_measure():
  measured = measuring.measure('a', io.BytesIO(IMAGE), TEXT, 5.0)
  assert measured == indexed.Measured('a', (40, 60), stamp=stamp(score=5.0))
  for data, problem, detail in (
    (b'', indexed.UNREADABLE, 'the file is empty: copy it again'),
    (b'no image', indexed.UNREADABLE, 'Pillow knows no such format: save'),
    (b'version https://git-lfs.x', indexed.UNREADABLE, 'it is a git-lfs poin'),
    (b'\n<!doctype html>', indexed.UNREADABLE, 'it is an HTML page'),
  ):
    measured = measuring.measure('a', io.BytesIO(data), TEXT)
    assert measured[1:3] == (None, problem)
    assert measured.detail.startswith(detail)


def test_a_decompression_bomb_is_too_large():
  bomb = bytearray(IMAGE)
  bomb[18:26] = (30_000).to_bytes(4, 'little') * 2  # width, height of a BMP
  measured = measuring.measure('a', io.BytesIO(bytes(bomb)), TEXT)
  assert (measured.size, measured.problem) == (None, indexed.TOO_LARGE)
  assert '900000000 pixels' in measured.detail


@pytest.mark.parametrize(
  'value, score',
  [(None, None), ('', None), (math.nan, None), ('nan', None), ('5.5', 5.5)],
)
def test_scores(value, score):
  assert measuring.parse_score(value) == (score, '')


@pytest.mark.parametrize('value', ['high', math.inf, '-inf', [5], {}])
def test_bad_scores(value):
  score, wrong = measuring.parse_score(value)
  assert score is None and f'aesthetic_score = {value!r}' in wrong


class Rows(indexed.IndexedSource):
  """A source of rows."""

  fields = ()

  def name(self, i):
    return self.value('name', i)

  def read(self, i):
    return {'image': IMAGE, 'caption': ''}


def test_every_problem_is_counted():
  """Parts with and without details and several captions are joined."""
  usable = [indexed.Measured('u', (2, 3)), indexed.Measured('no size')]
  problems = [
    indexed.Measured(f'{code}', None, code, f'is\n{code}', captions=code)
    for code in record_filters.PROBLEMS
  ]
  several = [indexed.Measured('several', (4, 4), captions=300)]
  source = Rows(
    index.join(
      [
        indexed.make_table(
          rows, {}, name=indexed.pa.array([r.name for r in rows])
        )
        for rows in (usable, problems, several)
      ]
    )
  )
  chosen = record_filters.FilteredSource(source, record_filters.NONE)
  assert chosen.sizes.tolist() == [[2, 3], [4, 4]]
  account = chosen.account()
  assert account.seen == 3 + len(problems)
  counts = {why: lost.count for why, lost in account.left_out.items()}
  unreadable = record_filters.PROBLEMS[indexed.UNREADABLE]
  assert counts == dict.fromkeys(record_filters.PROBLEMS.values(), 1) | {
    unreadable: 2
  }
  assert list(account.beside.values()) == [1]
  # Names and details take one line each.
  lines = str(account).splitlines()
  assert lines[0].split() == [str(account.seen), 'records', 'seen']
  assert any('4: is\\n4' in line for line in lines)
  assert len(list(chosen.left_out())) == len(problems) + 1
  assert chosen.keys.tolist() == [indexed.key('u'), indexed.key('several')]


def test_names_that_no_terminal_prints():
  assert indexed.printable('犬\u3000é') == '犬\u3000é'
  assert indexed.printable('a\n\udcff\u2028') == 'a\\n\\udcff\\u2028'


def scenes(**settings):
  settings = dict(resolution=40, length=20, objects=8, colours=6) | settings
  return kinds.make_source('scenes', settings, say=lambda line: None)


def test_stamps_of_scenes():
  """They follow from the settings, and longer sources begin alike."""
  first, longer = scenes(), scenes(length=30)
  assert len(set(first.stamps.tolist())) == 20
  assert (first.keys == longer.keys[:20]).all()
  assert (first.stamps == longer.stamps[:20]).all()
  for change in (dict(seed=1), dict(objects=9), dict(jitter=0.5)):
    other = scenes(**change)
    assert (first.keys == other.keys).all()
    assert not (first.stamps == other.stamps).any()


def test_a_mixture_accounts_for_its_sources(tmp_path):
  scene = dict(source='scenes', resolution=40, objects=8, colours=6)
  parts = {'a': scene | dict(length=5, share=1)}
  parts['b'] = scene | dict(length=20, share=1)
  said = []
  source = kinds.make_source('mixture', parts, say=said.append)
  account = source.account()
  assert said == [str(account)]
  assert (account.seen, account.used) == (25, 25)
  assert account.beside['repetitions in a pass, to reach the shares'] == 15
  assert len(source.stamps) == len(source.keys) == len(source) == 40
  # Of two sources, records of one name are different ones.
  assert len(set(source.keys.tolist())) == 25


def test_columns_of_numbers_beyond_floats_and_of_broken_text():
  numbers = column_values.make_column([10**400, -(10**400), None, True])
  assert numbers.to_pylist() == [math.inf, -math.inf, None, 1]
  texts = column_values.make_column(['\ud800', b'a\xff', 'b', 3])
  assert texts.to_pylist() == ['\\ud800', 'a\\xff', 'b', '3']
