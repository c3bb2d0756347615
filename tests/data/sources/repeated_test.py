"""Tests folders whose names hold repeats, as kohya's scripts read them."""

import numpy as np
import pytest

from sdxl_jax.data import buckets
from sdxl_jax.data.sources import (
  folder_repeats,
  kinds,
  mixture,
  record_changes,
  repeated,
)
from tests.support import image_folders


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two images of 3_sks dog, one of 1_cat, and three that are left out."""
  path = tmp_path_factory.mktemp('images')
  image_folders.write_captioned(path / '3_sks dog/a.png', 'a dog')
  image_folders.write_image(path / '3_sks dog/deep/b.png')
  image_folders.write_captioned(path / '1_cat/a.png', 'a cat', '.caption')
  image_folders.write_captioned(path / '0_none/a.png', 'no repeats')
  image_folders.write_captioned(path / 'other/a.png', 'no number')
  image_folders.write_captioned(path / 'a.png', 'in no folder')
  return path


def make(path, say=str, **settings):
  settings = {'path': str(path), 'num_repeats_in_names': True} | settings
  return kinds.make_source('folder', settings, workers=0, say=say)


@pytest.mark.parametrize(
  'path, name',
  [
    ('10_dog/a.png', (10, 'dog')),
    ('10_sks_dog/deep/a.png', (10, 'sks_dog')),
    ('10/a.png', (10, '')),
    ('0_dog/a.png', (0, 'dog')),
    ('dog/a.png', (0, '')),
    ('10_dog.png', (0, '')),
    ('deep/10_dog/a.png', (0, '')),
    ('-1_dog/a.png', (0, '')),
  ],
)
def test_names_of_folders(path, name):
  assert folder_repeats.parse(path) == name


def test_records_are_repeated(folder):
  lines = []
  source = make(folder, lines.append)
  captions = [source[i]['caption'] for i in range(len(source))]
  assert captions == ['a cat'] + ['a dog'] * 3 + ['sks dog'] * 3
  assert len(source.sizes) == len(source.keys) == len(source.stamps) == 7
  assert np.unique(source.keys).size == 3
  left_out = sorted(line.split('/')[-2:] for line in source.left_out())
  assert len(left_out) == 3 and 'no folder above it is named' in lines[0]
  account = source.account()
  assert (account.seen, account.used) == (6, 3)
  assert account.beside[repeated.REPETITIONS] == 4
  assert account.beside[folder_repeats.NAMED] == 1


def test_names_mean_nothing_by_default(tmp_path):
  image_folders.write_captioned(tmp_path / '2019_trip/a.png', 'a beach')
  image_folders.write_image(tmp_path / '2019_trip/b.png')
  settings = {'path': str(tmp_path)}
  source = kinds.make_source('folder', settings, workers=0, say=str)
  assert [source[i]['caption'] for i in range(len(source))] == ['a beach']
  assert len(make(tmp_path)) == 2 * 2019


def test_a_pass_takes_each_repetition_once(folder):
  """Wherever it is in the order, as a record of its own."""
  source = make(folder)
  schedule = buckets.Schedule(source.sizes, ((16, 16),), 0, 7)
  _, ids, passes = schedule.records(0)
  assert sorted(ids) == list(range(7)) and not passes.any()
  assert sorted(source[int(i)]['caption'] for i in ids).count('a dog') == 3
  # A cache computes each, with a crop of its own.
  assert np.unique(record_changes.of_source(source).keys).size == 7


def test_rows_of_a_table_have_the_captions_of_folders(tmp_path):
  for name in ('2_dog/a.png', '2_dog/b.png', 'c.png'):
    image_folders.write_image(tmp_path / name)
  rows = [{'file_name': f'2_dog/{n}.png'} for n in 'ab']
  rows[0]['text'] = 'a dog'
  image_folders.metadata(tmp_path, *rows, {'file_name': 'c.png', 'text': 'c'})
  source = make(tmp_path)
  captions = [source[i]['caption'] for i in range(len(source))]
  assert captions == ['a dog'] * 2 + ['dog'] * 2


def test_shares_of_a_mixture_count_repetitions(folder):
  """And the records of each source are checked once."""
  parts = {
    name: {
      'source': 'folder',
      'share': share,
      'path': str(folder),
      'num_repeats_in_names': True,
    }
    for name, share in (('a', 1), ('b', 2))
  }
  source = kinds.make_source('mixture', parts, workers=0, say=str)
  assert source.lengths.tolist() == [7, 14]
  assert mixture.distinct_ids(make(folder)).tolist() == [0, 1, 4]
  assert mixture.distinct_ids(source).tolist() == [0, 1, 4, 7, 8, 11]
  account = source.account()
  assert (account.used, len(source)) == (6, 21)
  assert account.beside['repetitions in a pass, to reach the shares'] == 7


def test_the_folder_of_one_concept(folder):
  """As its parent is meant, the error names the field."""
  with pytest.raises(ValueError, match='name the folder above them'):
    make(folder / '3_sks dog')


def test_a_year_is_no_number_of_repeats(tmp_path):
  image_folders.write_captioned(tmp_path / '2000000000_a/a.png', 'a')
  with pytest.raises(ValueError, match='over 1,000,000,000, such as .*a.png'):
    make(tmp_path)


def test_caption_extension(tmp_path):
  image_folders.write_captioned(tmp_path / 'a.png', 'of txt')
  (tmp_path / 'a.caption').write_text('of caption')
  (tmp_path / 'a.tags').write_text('of tags')
  for extension, text in (
    ('', 'of txt'),
    ('.caption', 'of caption'),
    ('.tags', 'of tags'),
  ):
    settings = {'path': str(tmp_path), 'caption_extension': extension}
    source = kinds.make_source('folder', settings, workers=0, say=str)
    assert source[0]['caption'] == text
  assert source.account().left_out == {}
  assert (
    source.account().beside['.txt files of images, which are not read'] == 1
  )
  for extension in ('tags', '.png'):
    with pytest.raises(ValueError, match='caption_extension is '):
      kinds.make_source(
        'folder', settings | {'caption_extension': extension}, workers=0
      )
