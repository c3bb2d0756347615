"""Tests what a run writes of its data before it trains."""

import json
import math

import pytest

from sdxl_jax.training import run_setup
from tests.support import image_folders, tiny_config


@pytest.fixture
def config(tmp_path):
  """Makes a config of a folder with three good images of four."""
  folder = tmp_path / 'images'
  for i in range(4):
    image_folders.write_captioned(folder / f'{i}.png', '' if i == 2 else 'a')
  config = tiny_config.get_config()
  config.data.source, config.data.folder.path = 'folder', str(folder)
  return config


def test_records_are_accounted_for(config, tmp_path):
  said = []
  source = run_setup.make_source(config, tmp_path, said.append)
  assert len(source) == 3
  table = (tmp_path / 'records.txt').read_text()
  assert said == [table.removesuffix('\n')]
  assert [line.split()[0] for line in table.splitlines()[:3]] == list('431')
  left_out = (tmp_path / 'left_out.txt').read_text()
  name = f'{config.data.folder.path}/2.png'
  assert left_out == f'{name}: it has no caption\n' and name in table


def test_scores_that_are_missing(config, tmp_path):
  """The refiner is trained on records with a score."""
  rows = [
    {'file_name': f'{i}.png', 'text': 'a', 'aesthetic_score': score}
    for i, score in enumerate((5.0, math.nan, 6.0))
  ]
  lines = '\n'.join(map(json.dumps, rows))
  (tmp_path / 'images/metadata.jsonl').write_text(lines)
  for refiner, count in ((False, 3), (True, 2)):
    config.refiner = refiner
    source = run_setup.make_source(config, tmp_path, list)
    assert len(source) == count
  assert 'which the refiner needs' in (tmp_path / 'records.txt').read_text()
  # A folder without any scores is refused at the start.
  (tmp_path / 'images/metadata.jsonl').unlink()
  with pytest.raises(ValueError, match='3  left out: it has no aesthetic_sc'):
    run_setup.make_source(config, tmp_path, list)
