"""Tests the folder source: both layouts, and an error for every mistake."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import images
from sdxl_jax.data.sources import folder, record_filters
from tests.support import datasets


def write_image(path, size=(20, 30), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  h, w = size
  Image.new('RGB', (w, h), 'teal').save(path, **options)


def all_of(source):
  return [source[i] for i in range(len(source))]


@pytest.fixture
def captioned(tmp_path):
  """Writes four images with captions, one rotated, some in sub-folders."""
  rotated = Image.Exif()
  rotated[0x0112] = 6
  write_image(tmp_path / 'b.JPG', (20, 30), exif=rotated)
  write_image(tmp_path / 'deep/er/a.png', (10, 40))
  write_image(tmp_path / 'deep/c.webp', (25, 25))
  write_image(tmp_path / 'd.jpeg', (33, 11))
  for name in ('b', 'deep/er/a', 'deep/c', 'd'):
    (tmp_path / f'{name}.txt').write_text(f'caption of {name}\n')
  return tmp_path


def test_caption_files(captioned):
  (captioned / '.hidden.png').write_bytes(b'')
  source = folder.Folder(captioned, workers=0)
  assert len(source) == 4
  assert source.sizes.dtype == np.int32
  sizes = {s['caption']: s['original_size'] for s in all_of(source)}
  assert sizes == {
    'caption of b': (30, 20),
    'caption of deep/er/a': (10, 40),
    'caption of deep/c': (25, 25),
    'caption of d': (33, 11),
  }
  for i, example in enumerate(all_of(source)):
    assert example['original_size'] == tuple(source.sizes[i])
    decoded = images.decode(example['image'], example['name'])
    assert decoded.size[::-1] == example['original_size']


@pytest.mark.parametrize('suffix', ['jsonl', 'csv'])
def test_metadata(captioned, suffix):
  rows = [
    {'file_name': 'deep/c.webp', 'text': 'a square, "teal"'},
    {'file_name': 'd.jpeg', 'text': 'tall', 'aesthetic_score': 5.5},
  ]
  path = captioned / f'metadata.{suffix}'
  if suffix == 'jsonl':
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  else:
    path.write_text(
      'file_name,text,aesthetic_score\n'
      'deep/c.webp,"a square, ""teal""",\nd.jpeg,tall,5.5\n'
    )
  source = folder.Folder(captioned, workers=0)
  assert [e['caption'] for e in all_of(source)] == [r['text'] for r in rows]
  assert 'aesthetic_score' not in source[0]
  assert source[1]['aesthetic_score'] == 5.5
  assert source.sizes.tolist() == [[25, 25], [33, 11]]


def fails(captioned, *words, error=ValueError):
  """Expects an error that fits one screen and holds all the words."""
  with pytest.raises(error) as caught:
    folder.Folder(captioned, workers=0)
  text = str(caught.value)
  assert len(text.splitlines()) < 12
  for word in words:
    assert word in text, text


def test_no_folder(tmp_path):
  fails(tmp_path / 'no', 'no such folder', error=FileNotFoundError)


def test_no_images(tmp_path):
  (tmp_path / 'movie.mp4').write_bytes(b'')
  fails(tmp_path, 'no images among its 1 files', '.webp')


def test_image_without_caption(captioned):
  for i in range(9):
    write_image(captioned / f'x{i}.png')
  fails(captioned, 'images without a caption (9)', 'x0.png', '...', 'Write the')


def test_caption_without_image(captioned):
  (captioned / 'lonely.txt').write_text('a ghost')
  fails(captioned, 'caption files without an image (1)', 'lonely.txt', 'remove')


def metadata(captioned, *lines):
  (captioned / 'metadata.jsonl').write_text('\n'.join(lines))
  return captioned


def test_row_without_image(captioned):
  row = '{"file_name": "nowhere.png", "text": ""}'
  fails(metadata(captioned, row), 'missing (1)', 'nowhere.png', 'relative to')


@pytest.mark.parametrize('column', ['file_name', 'text'])
def test_missing_column(captioned, column):
  row = {'file_name': 'd.jpeg', 'text': ''}
  del row[column]
  fails(metadata(captioned, json.dumps(row)), repr(column), 'row 1', 'columns')


def test_missing_csv_column(captioned):
  (captioned / 'metadata.csv').write_text('file_name,caption\nd.jpeg,hello\n')
  fails(captioned, "'text' (1)", 'row 1')


def test_bad_rows(captioned):
  fails(metadata(captioned, 'oops'), 'line 1 is not a JSON object', 'oops')
  fails(metadata(captioned, '[1]'), 'line 1 is not a JSON object')
  row = '{"file_name": "d.jpeg", "text": "", "aesthetic_score": "high"}'
  fails(metadata(captioned, row), "aesthetic_score = 'high'", 'row 1')


def test_two_tables(captioned):
  (captioned / 'metadata.csv').write_text('file_name,text\n')
  fails(metadata(captioned, ''), 'remove one')


def test_broken_headers_are_left_out(captioned):
  (captioned / 'bad.png').write_bytes(b'no image')
  (captioned / 'bad.txt').write_text('broken')
  source = folder.Folder(captioned, workers=0)
  chosen = record_filters.FilteredSource(source, record_filters.NONE)
  account = chosen.account()
  assert (account.seen, account.used) == (5, 4)
  assert [line.split(':')[0] for line in chosen.left_out()] == [
    str(captioned / 'bad.png')
  ]


def test_all_headers_broken(tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'no image')
  (tmp_path / 'bad.txt').write_text('broken')
  source = folder.Folder(tmp_path, workers=0)
  with pytest.raises(ValueError, match='leave none of 1'):
    record_filters.FilteredSource(source, record_filters.NONE)


def test_vanished_image(captioned):
  source = folder.Folder(captioned, workers=0)
  (captioned / 'b.JPG').unlink()
  with pytest.raises(images.UnreadableImage, match='b.JPG'):
    source[0]


def test_a_changed_image_is_measured_again(tmp_path):
  """Also if its file is as long as before."""
  path = tmp_path / '0.png'
  (tmp_path / '0.txt').write_text('an image')
  first, second = (
    datasets.example(0, size)['image'] for size in ((20, 30), (30, 20))
  )
  length = max(len(first), len(second))
  path.write_bytes(first.ljust(length, b' '))

  def sizes():
    return folder.Folder(tmp_path, workers=0).sizes.tolist()

  assert sizes() == sizes() == [[20, 30]]
  path.write_bytes(second.ljust(length, b' '))
  os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
  assert sizes() == [[30, 20]]
