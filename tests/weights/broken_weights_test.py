"""Broken files end in one line with the reason, and leave nothing behind.

The benchmark broken_weights tries more of them.
"""

import time

import pytest

from tests.support import conversions, golden_sets, headers

SECONDS = 60  # limit for one file, on a machine with other work


@pytest.fixture(scope='session')
def whole(tmp_path_factory):
  """The bytes of a single file that converts."""
  path = tmp_path_factory.mktemp('whole') / 'refiner.safetensors'
  source = golden_sets.SETS[0] / 'tiny' / 'refiner'
  conversions.run(source, path, 'single_file')
  return path.read_bytes()


def try_one(whole, seed, folder):
  """Asserts that a broken file is refused well; returns (fault, reason)."""
  fault, data = headers.mutated(whole, seed)
  source = folder / 'broken.safetensors'
  source.write_bytes(data)
  started = time.monotonic()
  try:
    conversions.run(source, folder / 'out', 'diffusers')
    reason = None
  except (ValueError, OSError) as error:  # the command prints them as a line
    reason = str(error)
  assert reason, f'{fault} ({seed}) was converted'
  assert reason.count('\n') == 0 and len(reason) < 2000, reason
  assert reason.isprintable(), reason
  assert time.monotonic() - started < SECONDS, f'{fault} ({seed})'
  assert [path.name for path in folder.iterdir()] == [source.name], fault
  return fault, reason


@pytest.mark.parametrize('first', range(len(headers.MUTATIONS)))
def test_broken_files(whole, tmp_path, first):
  for seed in range(first, 3 * len(headers.MUTATIONS), len(headers.MUTATIONS)):
    try_one(whole, seed, tmp_path)


def test_the_file_itself_is_fine(whole, tmp_path):
  (tmp_path / 'a.safetensors').write_bytes(headers.build(*headers.parse(whole)))
  conversions.run(tmp_path / 'a.safetensors', tmp_path / 'out', 'diffusers')
