"""Tests metadata tables of folders: what is read, left out and refused."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data.sources import record_filters
from tests.support import image_folders


@pytest.fixture
def captioned(tmp_path):
  return image_folders.write_four(tmp_path)


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
  source = image_folders.usable(captioned)
  assert [e['caption'] for e in image_folders.all_of(source)] == [
    r['text'] for r in rows
  ]
  assert image_folders.counts_of(source) == {
    'the table of its folder does not list it': 2
  }
  assert 'aesthetic_score' not in source[0]
  assert source[1]['aesthetic_score'] == 5.5
  assert source.sizes.tolist() == [[25, 25], [33, 11]]


def test_rows_without_image(captioned):
  good = {'file_name': './d.jpeg', 'text': 'tall'}
  nowhere = {'file_name': 'nowhere.png', 'text': ''}
  chosen = image_folders.usable(
    image_folders.metadata(captioned, good, nowhere, {'text': 'a'}, good)
  )
  assert image_folders.captions_of(chosen) == {'d.jpeg': 'tall'}
  assert image_folders.counts_of(chosen) == {
    'it has no image': 2,
    'an earlier record has its name': 1,
    'the table of its folder does not list it': 3,
  }
  left_out = '\n'.join(chosen.left_out())
  for words in (
    'nowhere.png: it has no image (metadata.jsonl, line 2;',
    'metadata.jsonl, line 3: it has no image (None is no file_name)',
    'd.jpeg: an earlier record has its name (metadata.jsonl, line 4)',
  ):
    assert words in left_out


@pytest.mark.parametrize('column', ['file_name', 'text'])
def test_missing_column(captioned, column):
  row = {'file_name': 'd.jpeg', 'text': '', 'prompt': 'a'}
  del row[column]
  image_folders.fails(
    image_folders.metadata(captioned, row),
    repr(column),
    'prompt',
    'metadata.jsonl',
  )


def test_another_caption_column(captioned):
  row = {'file_name': 'd.jpeg', 'caption': 'hello', 'by': {'x': ['a', 'b']}}
  image_folders.metadata(captioned, row)
  image_folders.fails(
    captioned, "but ['file_name', 'caption', 'by']", 'folder.caption'
  )
  assert image_folders.captions_of(
    image_folders.usable(captioned, caption='caption')
  ) == {'d.jpeg': 'hello'}
  chosen = image_folders.usable(captioned, caption='by.x')
  assert image_folders.captions_of(chosen) == {'d.jpeg': 'a'}
  several = 'of the used have several captions, of which the first is read'
  assert chosen.account().beside[several] == 1


def test_bad_rows(captioned):
  image_folders.fails(
    image_folders.metadata(captioned, 'oops'),
    'line 1 is not a JSON object',
    'oops',
  )
  image_folders.fails(
    image_folders.metadata(captioned, '[1]'), 'line 1 is not a JSON object'
  )


def test_bad_values(captioned):
  """What cannot be a caption or a score is left out, with its line."""
  file_names = ('b.JPG', 'd.jpeg', 'deep/c.webp', 'deep/er/a.png')
  texts = (3, {'en': 'a'}, None, 'good')
  rows = [{'file_name': n, 'text': t} for n, t in zip(file_names, texts)]
  chosen = image_folders.usable(image_folders.metadata(captioned, *rows))
  assert image_folders.captions_of(chosen) == {'a.png': 'good'}
  assert image_folders.counts_of(chosen) == {
    'it has no caption': 1,
    'its caption is not text': 2,
  }
  left_out = '\n'.join(chosen.left_out())
  assert "line 2: a struct of ['en']" in left_out and 'caption.en' in left_out
  # Scores: of 4 records, one is good, one missing.
  scores = (5, 'high', math.inf, math.nan)
  rows = [
    {'file_name': n, 'text': 'a', 'aesthetic_score': s}
    for n, s in zip(file_names, scores)
  ]
  chosen = image_folders.usable(image_folders.metadata(captioned, *rows))
  assert image_folders.counts_of(chosen) == {'its score is not a number': 2}
  assert "aesthetic_score = 'high'" in '\n'.join(chosen.left_out())
  assert [e.get('aesthetic_score') for e in image_folders.all_of(chosen)] == [
    5,
    None,
  ]
  scored = record_filters.Filters(scored=True)
  chosen = record_filters.FilteredSource(chosen.source, scored)
  assert image_folders.counts_of(chosen) == {
    'its score is not a number': 2,
    'it has no aesthetic_score, which the refiner needs': 1,
  }


def test_lines_end_at_line_feeds_only(captioned):
  text = 'a\u2028b\x0bc\x85d\te'
  line = json.dumps({'file_name': 'd.jpeg', 'text': text}, ensure_ascii=False)
  # As written by json.dumps, and with controls that are not escaped.
  for written in (line, line.replace('\\u000b', '\x0b').replace('\\t', '\t')):
    (captioned / 'metadata.jsonl').write_text(f'{written}\r\n', 'utf-8-sig')
    chosen = image_folders.usable(captioned)
    assert image_folders.captions_of(chosen) == {'d.jpeg': text}


def test_parquet_table(captioned):
  table = {
    'file_name': ['d.jpeg', 'b.JPG'],
    'captions': [['tall', 'a'], []],
    'thumbnail': [b'\xff', b''],
    'aesthetic_score': [math.nan, 5.0],
  }
  pq.write_table(pa.table(table), captioned / 'metadata.parquet')
  image_folders.fails(captioned, "'thumbnail'", "no column 'text'")
  chosen = image_folders.usable(captioned, caption='captions')
  assert image_folders.captions_of(chosen) == {'d.jpeg': 'tall'}
  assert 'aesthetic_score' not in chosen[0]
  (captioned / 'metadata.parquet').write_bytes(b'PAR1')
  image_folders.fails(captioned, 'metadata.parquet is no readable parquet file')


def test_two_tables(captioned):
  (captioned / 'metadata.csv').write_text('file_name,text\n')
  image_folders.fails(image_folders.metadata(captioned, ''), 'remove one')


def test_nested_tables(captioned):
  """Each lists the images below its own folder; others have .txt files."""
  table = captioned / 'deep/metadata.csv'
  table.write_text('file_name,text\nc.webp,nested\n../d.jpeg,above\n')
  image_folders.write_image(captioned / 'deeper/f.png')
  chosen = image_folders.usable(captioned)
  assert image_folders.captions_of(chosen) == {
    'c.webp': 'nested',
    'd.jpeg': 'above',
    'b.JPG': 'caption of b',
  }
  assert image_folders.counts_of(chosen) == {
    'it has no caption': 1,  # deeper/f.png
    'the table of its folder does not list it': 1,  # deep/er/a.png
  }
  assert chosen.account().beside == {
    'metadata files': 1,
    'caption files of them': 1,
    # deep/c.txt, deep/er/a.txt and d.txt
    'caption files, in place of which a table is read': 3,
  }


def test_a_table_in_another_encoding(captioned):
  text = 'file_name,text\nd.jpeg,"café, noir"\n'
  path = captioned / 'metadata.csv'
  path.write_bytes(text.encode('cp1252'))
  image_folders.fails(
    captioned, f'{path}: byte 26 (0xe9), in line 2', 'encoding'
  )
  chosen = image_folders.usable(captioned, encoding='cp1252')
  assert image_folders.captions_of(chosen) == {'d.jpeg': 'café, noir'}
  # As spreadsheets export text.
  path.write_bytes(text.replace(',', '\t', 1).encode('utf-16'))
  path.write_bytes('file_name\ttext\r\nd.jpeg\tcafé'.encode('utf-16'))
  assert image_folders.captions_of(image_folders.usable(captioned)) == {
    'd.jpeg': 'café'
  }
