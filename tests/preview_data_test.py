"""Tests that the preview shows what a training step takes."""

import numpy as np
import pytest
from PIL import Image

from sdxl_jax import preview_data
from sdxl_jax.text import tokenizer
from tests.support import commands, datasets, tiny_config


def test_occupancy():
  sizes = np.array([[100, 100]] * 6 + [[50, 100]] * 3 + [[20, 10]])
  rows = preview_data.occupancy(sizes, ((40, 40), (32, 48), (48, 32)))
  figures = [tuple(row.values()) for row in rows]
  assert figures[0] == ('40x40', 6, 0.6, 0.0, 0.0)
  assert figures[1] == pytest.approx(('32x48', 3, 0.3, 0.0, 0.25))
  assert figures[2] == pytest.approx(('48x32', 1, 0.1, 1.0, 0.25))
  text = preview_data.as_text(rows)
  assert '     40x40           6   60.0%      0.0%      0.0%' in text


def test_an_empty_bucket():
  rows = preview_data.occupancy(np.array([[9, 9]]), ((40, 40), (32, 48)))
  assert rows[1]['images'] == 0 and rows[1]['cut off'] == 0


def test_batches_are_shown(tmp_path):
  lines = []
  preview_data.preview(
    tiny_config.get_config(), tmp_path, steps=3, say=lines.append
  )
  assert 'records seen' in lines[0] and '16x24' in lines[1]
  assert lines[-1].startswith('12 images as training')
  grid = np.asarray(Image.open(tmp_path / 'batches.png'))
  assert grid.std() > 20
  assert (tmp_path / 'buckets.png').is_file()


def test_a_check_lists_what_cannot_be_read(tmp_path, capsys):
  folder, out = tmp_path / 'images', tmp_path / 'out'
  examples = [datasets.example(i, (20, 20)) for i in range(3)]
  datasets.write_folder(folder, examples)
  whole = examples[1]['image']
  (folder / '0001.png').write_bytes(whole[: len(whole) // 2])
  arguments = [
    f'--config={tiny_config.__file__}',
    '--config.data.source=folder',
    f'--config.data.folder.path={folder}',
    f'--output={out}',
    '--check',
  ]
  with commands.parsed('sdxl_jax.preview_data', arguments) as start:
    with pytest.raises(ValueError, match='1 of 3 records cannot be read.*repa'):
      start()
  printed = capsys.readouterr().out
  assert '3  records seen' in printed and '3  records checked' in printed
  assert (out / 'unreadable.txt').read_text().startswith(f'{folder}/0001.png: ')
  assert '3  used' in (out / 'records.txt').read_text()
  # Once it is repaired, nothing is left in the list.
  (folder / '0001.png').write_bytes(whole)
  with commands.parsed('sdxl_jax.preview_data', arguments) as start:
    start()
  assert (out / 'unreadable.txt').read_text() == ''


def test_captions_are_those_of_the_tokens():
  tokenize = tokenizer.load()
  batch = {
    'tokens': tokenize(['a fox', '']),
    'original_size': np.array([[20, 30], [9, 8]]),
    'crop_top_left': np.array([[0, 3], [1, 0]]),
    'target_size': np.array([[16, 16]] * 2),
  }
  assert preview_data.describe(batch, tokenize) == [
    'a fox\n20x30, from 0,3: 16x16',
    '\n9x8, from 1,0: 16x16',
  ]
