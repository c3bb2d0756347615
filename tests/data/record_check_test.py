"""Tests what a check of all records finds."""

import numpy as np
import pytest

from sdxl_jax.data import batch_rows, dataset, record_check
from sdxl_jax.text import tokenizer
from tests.support import datasets, tiny_config

LONG = 'red ' * 74 + 'snow fox'


def write(folder):
  """Writes 12 images of 40 x 40 px: two broken, one small, one there twice."""
  folder.mkdir()
  for i in range(12):
    side = 15 if i == 5 else 40
    image = datasets.encode(datasets.ramp(side, side, number=i))
    if i in (3, 8):
      image = image[: len(image) * 2 // 3]
    (folder / f'{i:02}.png').write_bytes(image)
    (folder / f'{i:02}.txt').write_text(LONG if i in (1, 8) else f'ramp {i}')
  (folder / '09.png').write_bytes((folder / '02.png').read_bytes())
  (folder / '10.txt').write_text('ramp 0')


def make_config(**fields):
  config = tiny_config.get_config()
  config.data.update(index_workers=0, num_threads=2, buckets=((32, 32),))
  config.update(**fields)
  return config


def check(config):
  source = dataset.make_source(config, list)
  return dataset.check_records(config, source, tokenizer.load())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data') / 'images'
  write(folder)
  return folder


def test_a_folder(folder, tmp_path):
  config = make_config()
  config.data.update(source='folder')
  config.data.folder.path = str(folder)
  report = check(config)
  assert report.records == 12
  names = [line.split(': ')[0] for line in report.unreadable]
  assert names == [f'{folder}/03.png', f'{folder}/08.png']
  assert all('truncated' in line for line in report.unreadable)
  # A record that cannot be read is counted as nothing else.
  assert report.cut == [f'{folder}/01.png: fox']
  assert report.same_image == [f'{folder}/09.png: as {folder}/02.png']
  assert report.same_caption == 1 and report.empty_caption == 0
  assert report.enlarged == report.blurred == 1  # from 15 to 32 px
  text = str(report)
  assert '             12  records checked' in text
  assert '              2   16.7%  cannot be read or decoded' in text
  assert 'more than 75 tokens' in text
  report.save(tmp_path)
  lists = {p.name: p.read_text() for p in tmp_path.iterdir()}
  assert lists == {
    'unreadable.txt': ''.join(f'{line}\n' for line in report.unreadable),
    'cut_captions.txt': f'{folder}/01.png: fox\n',
    'same_images.txt': f'{folder}/09.png: as {folder}/02.png\n',
  }
  # With more tokens nothing is cut.
  config.max_token_length = 150
  assert check(config).cut == []


def test_captions_are_checked_as_they_are_used(folder, tmp_path):
  """With what is added to them, and the longest of what is chosen."""
  (tmp_path / 'images').mkdir()
  texts = [
    'x\n' + LONG,  # one line of two is cut
    'short\nshorter',
    ' '.join(['red'] * 74) + ' {a|snow fox}',  # one option of two
    ', '.join(['tag'] * 37),  # short enough without the suffix
  ]
  for i, text in enumerate(texts):
    image = datasets.encode(datasets.ramp(40, 40, number=i))
    (tmp_path / 'images' / f'{i}.png').write_bytes(image)
    (tmp_path / 'images' / f'{i}.txt').write_text(text)
  config = make_config()
  config.data.update(source='folder')
  config.data.folder.path = str(tmp_path / 'images')
  config.data.captions.update(
    enable_wildcard=True, shuffle_caption=True, caption_suffix=', by me'
  )
  report = check(config)
  names = [line.split(': ')[0][-5:] for line in report.cut]
  assert names == ['0.png', '2.png', '3.png']
  assert report.cut[0].endswith('fox, by me') and report.empty_caption == 0


def test_a_mixture_is_read_once(folder):
  """Though the small part is repeated, to reach its share."""
  config = make_config()
  config.data.source = 'mixture'
  photos = dict(source='folder', path=str(folder), share=0.9)
  scenes = dict(config.data.scenes.to_dict(), source='scenes', length=40)
  with config.unlocked():
    config.data.mixture = {'photos': photos, 'scenes': scenes | {'share': 0.1}}
  source = dataset.make_source(config, list)
  assert len(source) > 300
  report = dataset.check_records(config, source, tokenizer.load())
  assert report.records == 52 and len(report.unreadable) == 2


class Odd:
  """Records of a reader that returns what it should not, or raises."""

  captions = 'a', None, 'c', 'd'
  sizes = np.array([[40, 40]] * 4)

  def __len__(self):
    return 4

  def name(self, i):
    return f'record {i}'

  def __getitem__(self, i):
    if i == 2:
      raise KeyError('column')
    return {
      'image': np.zeros((40, 40, 3), np.uint8),
      'caption': self.captions[i],
      'original_size': (40, 40),
      'name': self.name(i),
      'aesthetic_score': float('nan') if i == 3 else 5.0,
    }


@pytest.mark.parametrize('scored', [False, True])
def test_whatever_a_reader_raises(scored):
  def tokenize(captions):
    return np.zeros((len(captions), 2, 77)), [''] * len(captions)

  options = batch_rows.BatchOptions(aesthetic_score=scored, num_threads=0)
  report = record_check.check(Odd(), ((32, 32),), tokenize, options)
  names = [line.split(': ')[0] for line in report.unreadable]
  assert names == ['record 1', 'record 2'] + ['record 3'] * scored
  assert 'None' in report.unreadable[0] and 'KeyError' in report.unreadable[1]
