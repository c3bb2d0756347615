"""Which records are held out: by their names and the share alone."""

import dataclasses

import numpy as np
import pytest

from sdxl_jax.data.sources import (
  held_out,
  indexed,
  kinds,
  mixture,
  record_filters,
  repeated,
)


class Records:
  """A source of records with these names."""

  def __init__(self, names):
    self.names = list(names)
    self.sizes = np.full((len(self.names), 2), 8)

  def __len__(self):
    return len(self.names)

  def __getitem__(self, i):
    return {'name': self.names[i]}

  def name(self, i):
    return self.names[i]

  @property
  def keys(self):
    return np.array([indexed.key(name) for name in self.names], np.uint64)

  stamps = keys


def make(names):
  return record_filters.FilteredSource(Records(names), record_filters.NONE)


def names_of(source):
  return [source.name(i) for i in range(len(source))]


def held_names(split):
  return {name for _, leaf in split.held_out for name in names_of(leaf)}


NAMES = [f'{i}.png' for i in range(2000)]


def test_hashes_never_change():
  """They decide for every run what it has not been trained on."""
  assert held_out.hashes(make(['a.png', 'b/c.png', 'ü'])).tolist() == [
    5775767250810239717,
    687254155244273421,
    17167795657567009940,
  ]
  held = held_names(held_out.split(make(NAMES[:40]), 0.1))
  assert held == {'3.png', '9.png', '24.png', '36.png', '37.png'}


def test_a_record_is_held_out_by_its_name_alone():
  """Whatever its place, and the records beside it."""
  split = held_out.split(make(NAMES), 0.1)
  held = held_names(split)
  assert 150 < len(held) < 250  # 200 are expected, with a deviation of 13
  assert set(names_of(split.trained)) == set(NAMES) - held
  others = [f'other {i}' for i in range(500)]
  mixed = list(np.random.default_rng(0).permutation(NAMES[::2] + others))
  again = held_names(held_out.split(make(mixed), 0.1))
  assert again & set(NAMES) == held & set(NAMES[::2])
  more = held_names(held_out.split(make(NAMES), 0.2))
  assert held < more


def test_the_account_says_what_is_held_out():
  split = held_out.split(make(NAMES), 0.1)
  account = split.trained.account()
  count = len(held_names(split))
  assert account.left_out[held_out.REASON].count == count
  assert (account.seen, account.used) == (2000, 2000 - count)
  # The source itself is as it was.
  source = make(NAMES)
  assert held_out.split(source, 0.0) == (0.0, source, [])
  held_out.split(source, 0.5)
  assert len(source) == 2000 and not source.left_out_by


def test_sources_without_keys():
  """Caches of an earlier version; the names are there nevertheless."""
  source = make(NAMES)
  with_keys = held_names(held_out.split(source, 0.1))
  source.source.__class__ = type('Old', (Records,), {'keys': None})
  assert held_names(held_out.split(source, 0.1)) == with_keys


def test_repetitions_are_held_out_together():
  source = make(NAMES)
  repeats = 1 + np.arange(2000) % 3
  split = held_out.split(repeated.Repeated(source, repeats), 0.1)
  held = held_names(split)
  assert held == held_names(held_out.split(source, 0.1))
  trained = names_of(split.trained)
  assert not held & set(trained)
  for name in ('0.png', '1.png', '2.png', '5.png'):
    if name not in held:
      assert trained.count(name) == repeats[NAMES.index(name)]
  assert sum(len(leaf) for _, leaf in split.held_out) == len(held)


def test_mixtures_keep_their_shares():
  parts = {'a': make(NAMES[:1500]), 'b': make(NAMES[1500:])}
  split = held_out.split(mixture.Mixture(parts, {'a': 1, 'b': 1}), 0.2)
  held = held_names(split)
  assert held == held_names(held_out.split(make(NAMES), 0.2))
  assert not held & set(names_of(split.trained))
  lengths = split.trained.lengths
  assert abs(lengths[0] - lengths[1]) <= 1
  assert [name for name, _ in split.held_out] == ['a', 'b']


def test_nothing_is_left_to_train_on():
  source = make(NAMES)
  held = sorted(held_names(held_out.split(source, 0.1)))[:3]
  with pytest.raises(ValueError, match='share is 0.1, which holds out all 3'):
    held_out.split(make(held), 0.1)


@pytest.mark.parametrize(
  'counts, share',
  [([20], 0), ([3199], 0), ([3200], 0.01), ([10**6], 256e-6), ([10**6, 20], 0)],
)
def test_small_sets_keep_their_records(counts, share):
  """Where the config does not say how many are held out."""

  @dataclasses.dataclass
  class Counted:
    count: int

    def __len__(self):
      return self.count

  source = Counted(counts[0])
  if len(counts) > 1:
    source = object.__new__(mixture.Mixture)
    source.names, source.sources = ['a', 'b'], [*map(Counted, counts)]
  assert held_out.choose_share(source) == pytest.approx(share)


def test_a_source_of_a_kind(tmp_path):
  """As kinds makes it: synthetic scenes have keys by their numbers."""
  settings = {'resolution': 40, 'length': 500, 'objects': 3, 'colours': 3}
  source = kinds.make_source('scenes', settings, say=list)
  split = held_out.split(source, 0.1)
  more = kinds.make_source('scenes', settings | {'length': 900}, say=list)
  again = held_out.split(more, 0.1)
  assert held_names(split) < held_names(again)
  trained = split.trained[0]
  assert trained['name'] not in held_names(split)
