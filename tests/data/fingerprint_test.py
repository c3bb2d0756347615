"""Tests that a changed dataset is noticed, and its changes counted."""

import numpy as np
import pytest

from sdxl_jax.data import fingerprint
from sdxl_jax.data.sources import indexed, mixture


class Records:
  """A source of records {name: content}."""

  def __init__(self, contents):
    self.contents = dict(contents)
    self.names = list(self.contents)
    self.sizes = np.full((len(self.names), 2), 16, np.int32)
    self.keys = np.array([indexed.key(n) for n in self.names], np.uint64)
    stamps = [indexed.hash64(c.encode()) for c in self.contents.values()]
    self.stamps = np.array(stamps, np.uint64)

  def __len__(self):
    return len(self.names)

  def name(self, i):
    return self.names[i]


OLD = {f'{i:02}.png': 'caption' for i in range(12)}


def changes(workdir, old, new):
  before, now = Records(old), Records(new)
  fingerprint.save(workdir, fingerprint.of(before), before)
  return fingerprint.compare(
    workdir, fingerprint.of(before), fingerprint.of(now), now
  )


def test_added_removed_and_changed(tmp_path):
  new = OLD | {'05.png': 'edited', 'new\n.png': 'new'}
  del new['00.png'], new['11.png']
  found = changes(tmp_path, OLD, new)
  assert found.other_records
  assert str(found).splitlines() == [
    '  before   12',
    '  added     1  new\\n.png',
    '  removed   2  00.png, 11.png',
    '  changed   1  05.png',
    '  now      11',
  ]


def test_changed_contents_keep_their_places(tmp_path):
  found = changes(tmp_path, OLD, OLD | {'03.png': 'edited'})
  assert not found.other_records and found.rows['changed'].count == 1


def test_another_order(tmp_path):
  found = changes(tmp_path, OLD, dict(reversed(OLD.items())))
  assert found.other_records and 'in another order' in str(found)


def test_names_are_cut(tmp_path):
  found = changes(tmp_path, {'a': ''}, OLD | {'a': ''})
  assert '00.png, 01.png, 02.png, 03.png, 04.png, ...' in str(found)


def test_without_the_records_of_before(tmp_path, monkeypatch):
  """Of a large dataset, or where the file is missing."""
  monkeypatch.setattr(fingerprint, 'MAX_RECORDS', 10)
  found = changes(tmp_path, OLD, {'a': ''})
  assert found.other_records and 'is not known' in str(found)
  monkeypatch.setattr(fingerprint, 'MAX_RECORDS', 20)
  monkeypatch.setattr(fingerprint, 'MAX_NAMED', 10)  # no names of removed ones
  found = changes(tmp_path, OLD, {'00.png': 'caption', 'a': ''})
  assert '  removed  11\n' in str(found) and 'added     1  a' in str(found)


def test_a_source_without_stamps(tmp_path):
  """Of a cache that an older version wrote."""
  source = Records(OLD)
  source.stamps = None
  old = fingerprint.of(source)
  assert old['by'] == 'size'
  fingerprint.save(tmp_path, old, source)
  assert not list(tmp_path.iterdir())
  found = fingerprint.compare(
    tmp_path, old, fingerprint.of(Records(OLD)), Records(OLD)
  )
  assert found.other_records and 'is not known' in str(found)


def test_a_mixture_counts_each_record_once(tmp_path):
  def mix(contents):
    parts = {'a': Records(contents), 'b': Records({'x': ''})}
    return mixture.Mixture(parts, {'a': 0.5, 'b': 0.5})

  old, new = mix(OLD), mix(OLD | {'y': ''})
  fingerprint.save(tmp_path, fingerprint.of(old), old)
  found = fingerprint.compare(
    tmp_path, fingerprint.of(old), fingerprint.of(new), new
  )
  assert [row.count for row in found.rows.values()] == [1, 0, 0]
  assert found.rows['added'].names == ['y'] and (found.before, found.now) == (
    24,
    26,
  )


@pytest.mark.parametrize('count', [2, 5])
def test_files_of_earlier_datasets_are_kept_for_a_while(tmp_path, count):
  for i in range(count):
    source = Records({str(i): ''})
    fingerprint.save(tmp_path, fingerprint.of(source), source)
    fingerprint.save(tmp_path, fingerprint.of(source), source)
  kept = list((tmp_path / fingerprint.FOLDER).iterdir())
  assert len(kept) == min(count, fingerprint.MAX_KEPT)
  assert fingerprint.path_of(tmp_path, fingerprint.of(source)) in kept
