"""Tests that each item of 200 odd datasets is used or left out, as it should.

Each dataset has random oddities of some 70 kinds, and its own table of what
must be counted, see tests/support/odd_datasets.py.
"""

import collections

import pytest

from sdxl_jax.data.sources import kinds, record_filters
from tests.support import odd_datasets, odd_registry

DATASETS = 200
FILTERS = record_filters.Filters(min_side=2, buckets=((16, 16), (16, 24)))
JOINED = 'rows with commas in a text without quotes'


@pytest.fixture(scope='module')
def boxes(tmp_path_factory):
  folder = tmp_path_factory.mktemp('odd')
  return [odd_datasets.write(folder / f'{n}', n) for n in range(DATASETS)]


@pytest.mark.parametrize('number', range(DATASETS))
def test_every_item_is_accounted_for(boxes, number):
  box, said = boxes[number], []
  source = kinds.make_source(box.source, box.settings, FILTERS, 0, said.append)
  # Its captions are those of the readable records.
  captions = sorted(source[i]['caption'] for i in range(len(source)))
  assert captions == sorted(box.used), dict(box.oddities)
  # Its table has each other item, for the right reason.
  account = source.account()
  expected = collections.Counter()
  for problem, count in box.left_out.items():
    expected[record_filters.PROBLEMS.get(problem, problem)] += count
  counted = collections.Counter()
  for reason, lost in account.left_out.items():
    starts = [start for start in expected if reason.startswith(start)]
    counted[starts[0] if starts else reason] += lost.count
  assert counted == expected, dict(box.oddities)
  assert account.used == len(box.used)
  assert account.seen == len(box.used) + sum(box.left_out.values())
  assert str(account) == said[0]
  # What is broken is named, and what lies beside the records is counted.
  filtered = sum(v for k, v in box.left_out.items() if isinstance(k, str))
  assert len(list(source.left_out())) == sum(expected.values()) - filtered
  beside = dict(account.beside)
  assert beside.pop(record_filters.SEVERAL, 0) == box.several
  assert beside.pop(JOINED, 0) == box.joined
  assert sum(beside.values()) == box.beside


def test_the_kinds_of_oddities(boxes):
  """All are written, some of them in many datasets."""
  names = [name for name, _, _ in odd_registry.ODDITIES]
  assert len(names) == len(set(names)) >= 40
  seen = collections.Counter()
  for box in boxes:
    seen.update(box.oddities)
  assert set(seen) == set(names)
