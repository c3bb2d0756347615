"""The folder source: both layouts, and an error for every mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import images, sources


def picture(path, size=(20, 30), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  h, w = size
  Image.new('RGB', (w, h), 'teal').save(path, **options)


@pytest.fixture
def folder(tmp_path):
  """Four pictures with caption files, one turned, some in sub-folders."""
  turned = Image.Exif()
  turned[0x0112] = 6
  picture(tmp_path / 'b.JPG', (20, 30), exif=turned)
  picture(tmp_path / 'deep/er/a.png', (10, 40))
  picture(tmp_path / 'deep/c.webp', (25, 25))
  picture(tmp_path / 'd.jpeg', (33, 11))
  for name in ('b', 'deep/er/a', 'deep/c', 'd'):
    (tmp_path / f'{name}.txt').write_text(f'caption of {name}\n')
  return tmp_path


def test_caption_files(folder):
  (folder / '.hidden.png').write_bytes(b'')
  source = sources.make_source('folder', path=folder)
  assert len(source) == 4
  assert source.sizes.dtype == np.int32
  sizes = {s['caption']: s['original_size'] for s in source}
  assert sizes == {
    'caption of b': (30, 20),
    'caption of deep/er/a': (10, 40),
    'caption of deep/c': (25, 25),
    'caption of d': (33, 11),
  }
  for i, example in enumerate(source):
    assert example['original_size'] == tuple(source.sizes[i])
    decoded = images.decode(example['image'], example['name'])
    assert decoded.shape[:2] == example['original_size']


@pytest.mark.parametrize('suffix', ['jsonl', 'csv'])
def test_metadata(folder, suffix):
  rows = [
    {'file_name': 'deep/c.webp', 'text': 'a square, "teal"'},
    {'file_name': 'd.jpeg', 'text': 'tall', 'aesthetic_score': 5.5},
  ]
  path = folder / f'metadata.{suffix}'
  if suffix == 'jsonl':
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n\n')
  else:
    path.write_text(
      'file_name,text,aesthetic_score\n'
      'deep/c.webp,"a square, ""teal""",\nd.jpeg,tall,5.5\n'
    )
  source = sources.Folder(folder)
  assert [e['caption'] for e in source] == [r['text'] for r in rows]
  assert 'aesthetic_score' not in source[0]
  assert source[1]['aesthetic_score'] == 5.5
  assert source.sizes.tolist() == [[25, 25], [33, 11]]


def fails(folder, *words, error=ValueError):
  """The folder is refused in one screen that holds all the words."""
  with pytest.raises(error) as caught:
    sources.Folder(folder)
  text = str(caught.value)
  assert len(text.splitlines()) < 12
  for word in words:
    assert word in text, text


def test_no_folder(tmp_path):
  fails(tmp_path / 'no', 'no such folder', error=FileNotFoundError)


def test_no_images(tmp_path):
  (tmp_path / 'movie.mp4').write_bytes(b'')
  fails(tmp_path, 'no images among its 1 files', '.webp')


def test_image_without_caption(folder):
  for i in range(9):
    picture(folder / f'x{i}.png')
  fails(folder, 'images without a caption (9)', 'x0.png', '...', 'Write the')


def test_caption_without_image(folder):
  (folder / 'lonely.txt').write_text('a ghost')
  fails(folder, 'caption files without an image (1)', 'lonely.txt', 'remove')


def metadata(folder, *lines):
  (folder / 'metadata.jsonl').write_text('\n'.join(lines))
  return folder


def test_row_without_image(folder):
  row = '{"file_name": "nowhere.png", "text": ""}'
  fails(metadata(folder, row), 'missing (1)', 'nowhere.png', 'relative to')


@pytest.mark.parametrize('column', ['file_name', 'text'])
def test_missing_column(folder, column):
  row = {'file_name': 'd.jpeg', 'text': ''}
  del row[column]
  fails(metadata(folder, json.dumps(row)), repr(column), 'row 1', 'columns')


def test_missing_csv_column(folder):
  (folder / 'metadata.csv').write_text('file_name,caption\nd.jpeg,hello\n')
  fails(folder, "'text' (1)", 'row 1')


def test_bad_rows(folder):
  fails(metadata(folder, 'oops'), 'line 1 is not a JSON object', 'oops')
  fails(metadata(folder, '[1]'), 'line 1 is not a JSON object')
  row = '{"file_name": "d.jpeg", "text": "", "aesthetic_score": "high"}'
  fails(metadata(folder, row), "aesthetic_score = 'high'", 'row 1')


def test_two_tables(folder):
  (folder / 'metadata.csv').write_text('file_name,text\n')
  fails(metadata(folder, ''), 'remove one')


def test_broken_headers_are_left_out(folder, caplog):
  (folder / 'bad.png').write_bytes(b'no picture')
  (folder / 'bad.txt').write_text('broken')
  source = sources.Folder(folder)
  assert len(source) == 4 and source.unreadable == [folder / 'bad.png']
  assert 'bad.png' in caplog.text and '(1)' in caplog.text


def test_all_headers_broken(tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'no picture')
  (tmp_path / 'bad.txt').write_text('broken')
  fails(tmp_path, 'unreadable', 'bad.png')


def test_vanished_picture(folder):
  source = sources.Folder(folder)
  (folder / 'b.JPG').unlink()
  with pytest.raises(images.UnreadableImage, match='b.JPG'):
    source[0]


def test_unknown_kind():
  with pytest.raises(ValueError, match=r"'tfds' is unknown; choose one of \["):
    sources.make_source('tfds')
