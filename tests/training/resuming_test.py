"""Tests what a start says of the dataset of the checkpoint it goes on from."""

import types

import pytest

from sdxl_jax.data import fingerprint
from sdxl_jax.data.sources import synthetic
from sdxl_jax.training import resuming


def scenes(length):
  return synthetic.Scenes(40, length=length, objects=4, colours=4)


def check(workdir, data, source, accepted=False, streams='order'):
  """Returns (whether a new pass begins, what was said)."""
  lines = []
  latest = types.SimpleNamespace(
    latest_step=None if data is None else 40, read_data=lambda: data
  )
  new_pass = resuming.check_dataset(
    latest,
    workdir,
    resuming.Dataset(source, fingerprint.of(source), streams),
    accepted,
    lines.append,
  )
  return new_pass, '\n'.join(lines)


def test_the_first_start_keeps_the_dataset(tmp_path):
  assert check(tmp_path, None, scenes(5)) == (False, '')
  path = fingerprint.path_of(tmp_path, fingerprint.of(scenes(5)))
  assert path.is_file()


def test_the_same_dataset(tmp_path):
  check(tmp_path, None, scenes(5))
  data = {'dataset': fingerprint.of(scenes(5))}
  assert check(tmp_path, data, scenes(5)) == (False, '')


def test_another_dataset_is_refused_or_accepted(tmp_path):
  check(tmp_path, None, scenes(5))
  data = {'dataset': fingerprint.of(scenes(5))}
  message = (
    'the dataset changed since step 40:\n  before   5\n  added    2  scene 5 .*'
    'scene 6 of .*\n  removed  0\n  changed  0\n  now      7\n.*accept_changes'
  )
  with pytest.raises(ValueError, match=message):
    check(tmp_path, data, scenes(7))
  new = fingerprint.path_of(tmp_path, fingerprint.of(scenes(7)))
  assert not new.exists()
  new_pass, said = check(tmp_path, data, scenes(7), accepted=True)
  assert new_pass and 'a new pass over it begins:\n  before   5' in said
  assert new.exists()


def test_other_buckets_begin_a_new_pass(tmp_path):
  """Also where the names and number of the records are the same."""
  check(tmp_path, None, scenes(5))
  data = {'dataset': fingerprint.of(scenes(5)), 'streams': 'order'}
  assert check(tmp_path, data, scenes(5)) == (False, '')
  new_pass, said = check(tmp_path, data, scenes(5), streams='another')
  assert new_pass and 'order of the data changed since step 40' in said


def test_a_checkpoint_of_an_earlier_version(tmp_path):
  new_pass, said = check(tmp_path, {'batches': 40}, scenes(5))
  assert not new_pass and 'kept no fingerprint of the dataset' in said
