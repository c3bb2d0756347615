"""Tests parquet: images, captions and columns of all types; broken files."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import kinds, parquet
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))


def write(path, row_group_size=2, **columns):
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def load(files, **settings):
  """Returns {name of a record: caption}, and the lines of what is left out."""
  source = kinds.make_source(
    'parquet', {'files': str(files), **settings}, workers=0, say=str
  )
  used = [source[i] for i in range(len(source))]
  account, left_out = source.account(), list(source.left_out())
  assert account.seen == account.used + len(left_out)
  names = {re.search(r'row \d+', e['name'])[0]: e['caption'] for e in used}
  return names, [re.search(r'row \d+.*', line)[0] for line in left_out]


def test_plain_bytes_and_other_names(tmp_path):
  names = [f'number {n}' for n in range(5)]
  write(tmp_path / 'a.parquet', jpg=[PNG] * 5, alt=names, p=[1, 2, None, 4, 5])
  source = parquet.Parquet(
    tmp_path / '*.parquet', 'jpg', 'alt', score='p', workers=0
  )
  assert [source[i]['caption'] for i in range(5)] == names
  assert source[4]['image'] == PNG and source[4]['aesthetic_score'] == 5
  assert 'aesthetic_score' not in source[2]
  assert source.name(3) == f'{tmp_path}/a.parquet: row 3, in group 1'


TEXTS = ['one', 'two']


@pytest.mark.parametrize(
  'column, expected',
  [
    (pa.array(TEXTS, pa.large_string()), TEXTS),
    (pa.array(TEXTS).dictionary_encode(), TEXTS),
    (pa.array([b'one', ' two'.encode('utf-16')], pa.binary()), TEXTS),
    (pa.array([b'one', b'two'], pa.large_binary()), TEXTS),
    (pa.array([['one', 'more'], [None, 'two']]), TEXTS),
    (pa.array([[['one']], [[], ['two']]]), TEXTS),
    (pa.array([['one'], []]), ['one', 'it has no caption']),
    (pa.array([None, 'two']), ['it has no caption', 'two']),
    (pa.array([' ', 'two']), ['it has no caption', 'two']),
    (
      pa.array([b'caf\xe9', b'two']),
      ['its caption is in another encoding (byte 3 (0xe9)', 'two'],
    ),
  ],
)
def test_columns_of_captions(tmp_path, column, expected):
  write(tmp_path / 'a.parquet', image=[PNG] * 2, text=column)
  used, left_out = load(tmp_path)
  for line in left_out:
    row, reason = line.split(', in group 0: ')
    used[row] = reason
  for row, text in enumerate(expected):
    assert used[f'row {row}'].startswith(text)


@pytest.mark.parametrize(
  'column, message',
  [
    (pa.array([3]), "column 'text' holds int64, not text: name another"),
    (pa.array([[0.5]]), r"column 'text' holds list<.*double>, not text"),
    (pa.array([{'en': 'a', 'n': 1}]), r"one of its fields, \['text.en'\]; the"),
    (pa.array([[{'en': 'a'}]]), r"one of its fields, \['text.en'\]; the col"),
    (
      pa.array([None]),
      '(?s)leave none of 1.*1  left out: it has no caption.*Name another colu'
      r'mn .*has image \(binary\), text \(null\)',
    ),
  ],
)
def test_captions_that_are_refused(tmp_path, column, message):
  write(tmp_path / 'a.parquet', image=[PNG], text=column)
  with pytest.raises(ValueError, match=message) as error:
    load(tmp_path)
  if 'holds' in message:
    # All columns, to choose from.
    assert re.search(r'image \(binary\), text \(', str(error.value))


def test_fields_within_columns(tmp_path):
  text = [{'en': 'a', 'fr': 'un'}, {'en': None, 'fr': 'deux'}]
  write(
    tmp_path / 'a.parquet',
    picture=[{'full': {'bytes': PNG, 'path': None}}] * 2,
    text=text,
    sentences=[[{'raw': 'first'}, {'raw': 'second'}], [{'raw': 'third'}]],
    **{'a.b': ['dots', 'in names']},
  )
  image = {'image': 'picture.full'}
  used, left_out = load(tmp_path, caption='text.en', **image)
  assert used == {'row 0': 'a'}
  assert left_out == ['row 1, in group 0: it has no caption']
  used, _ = load(tmp_path, caption='sentences.raw', **image)
  assert used == {'row 0': 'first', 'row 1': 'third'}
  with pytest.raises(ValueError, match=r"no column \['text.de'\], but \['pic"):
    load(tmp_path, caption='text.de', **image)
  used, _ = load(tmp_path, caption='a.b', **image)
  assert used == {'row 0': 'dots', 'row 1': 'in names'}


def test_labels_of_hugging_face(tmp_path):
  features = {'label': {'_type': 'ClassLabel', 'names': ['cat', 'dog']}}
  metadata = {'huggingface': json.dumps({'info': {'features': features}})}
  table = pa.table({'image': [PNG] * 4, 'label': [1, 0, -1, None]})
  table = table.replace_schema_metadata(metadata)
  pq.write_table(table, tmp_path / 'a.parquet')
  used, left_out = load(tmp_path, caption='label')
  assert used == {'row 0': 'dog', 'row 1': 'cat'} and len(left_out) == 2


@pytest.mark.parametrize('image', ['URL', 'image'])
def test_urls_are_refused(tmp_path, image):
  """With the command that downloads them."""
  urls = [None, 'https://example.org/a.jpg']
  write(tmp_path / 'a.parquet', URL=urls, TEXT=['a dog', 'a cat'])
  with pytest.raises(ValueError) as error:
    load(tmp_path, image=image, caption='TEXT')
  assert f'{tmp_path}/a.parquet has no ' in str(error.value)
  assert (
    f'img2dataset --url_list {tmp_path} --input_format parquet --url_col URL '
    '--caption_col TEXT --output_format webdataset'
  ) in str(error.value)


def test_paths_and_missing_images(tmp_path):
  """Hugging Face leaves bytes null where path is that of a file."""
  (tmp_path / 'a.png').write_bytes(PNG)
  (tmp_path / 'empty.png').touch()
  rows = [
    {'bytes': PNG, 'path': 'elsewhere.png'},
    {'bytes': None, 'path': 'a.png'},
    {'bytes': None, 'path': f'{tmp_path}/a.png'},
    {'bytes': None, 'path': 'missing.png'},
    {'bytes': None, 'path': None},
    {'bytes': b'', 'path': 'a.png'},
    None,
    {'bytes': None, 'path': 'https://example.org/a.jpg'},
    {'bytes': None, 'path': 'empty.png'},
  ]
  errors = [None] * 6 + ['HTTP Error 404', None, None]
  texts = [f'{n}' for n in range(9)]
  write(tmp_path / 'a.parquet', image=rows, text=texts, error_message=errors)
  used, left_out = load(tmp_path)
  assert used == {f'row {n}': f'{n}' for n in range(3)}
  none, broken = 'it has no image', 'its header cannot be read'
  empty = 'the file is empty: copy it again'
  assert left_out == [
    f'row 5, in group 2: {broken} ({empty})',
    f'row 8, in group 4: {broken} ({empty})',
    f'row 3, in group 1: {none} (no file {tmp_path}/missing.png)',
    f'row 4, in group 2: {none} (null)',
    f'row 6, in group 3: {none} (null, HTTP Error 404)',
    f'row 7, in group 3: {none} (https://example.org/a.jpg is a URL; download '
    'it)',
  ]
  source = parquet.Parquet(tmp_path, workers=0)
  assert source[1]['image'] == PNG and source[2]['image'] == PNG
  (tmp_path / 'a.png').unlink()
  with pytest.raises(images.UnreadableImage, match='a.parquet: row 1, in'):
    source[1]
  paths = [row and row['path'] for row in rows]
  (tmp_path / 'elsewhere.png').write_bytes(PNG)
  write(tmp_path / 'a.parquet', image=paths, text=texts)
  used, left_out = load(tmp_path)
  assert used == {'row 0': '0'} and len(left_out) == 8


def test_images_of_another_type(tmp_path):
  write(tmp_path / 'a.parquet', image=[1], text=['x'])
  with pytest.raises(ValueError, match="column 'image' holds int64, not enc"):
    load(tmp_path)


def test_scores(tmp_path):
  scores = ['6.5', 'good', 'inf', 'nan', None, '']
  texts = [f'{n}' for n in range(6)]
  write(tmp_path / 'a.parquet', image=[PNG] * 6, text=texts, p=scores)
  used, left_out = load(tmp_path, score='p')
  assert list(used) == ['row 0', 'row 3', 'row 4', 'row 5']
  reason = 'its score is not a number'
  starts = [
    f"row 1, in group 0: {reason} (aesthetic_score = 'good' is",
    f"row 2, in group 1: {reason} (aesthetic_score = 'inf' is",
  ]
  assert len(left_out) == 2
  assert all(map(str.startswith, left_out, starts))
  source = parquet.Parquet(tmp_path, score='p', workers=0)
  assert source[0]['aesthetic_score'] == 6.5
  assert not any('aesthetic_score' in source[i] for i in (3, 4, 5))


def test_files_of_different_schemas(tmp_path):
  """Also without rows, and without row groups."""
  write(tmp_path / 'a.parquet', image=[PNG], text=['a'], p=[1])
  write(tmp_path / 'b.parquet', text=[['b']], image=[{'bytes': PNG}], p=['2'])
  write(tmp_path / 'c.parquet', image=[PNG], text=[b'c'], p=[3.5], more=[0])
  empty = pa.table({'image': [PNG], 'text': ['x'], 'p': [1]}).slice(0, 0)
  pq.write_table(empty, tmp_path / 'd.parquet')
  pq.ParquetWriter(tmp_path / 'e.parquet', empty.schema).close()
  assert pq.read_metadata(tmp_path / 'e.parquet').num_row_groups == 0
  source = parquet.Parquet(tmp_path, score='p', workers=0)
  read = [(e['caption'], e['aesthetic_score']) for e in source]
  assert read == [('a', 1), ('b', 2), ('c', 3.5)]


def test_folders_of_columns(tmp_path):
  for lang, year in (('en', 1), ('de%20AT', 2)):
    folder = tmp_path / f'lang={lang}' / f'year={year}'
    write(folder / '0.parquet', image=[PNG], text=[lang])
  source = kinds.make_source(
    'parquet', {'files': str(tmp_path), 'score': 'year'}, workers=0
  )
  assert [e['aesthetic_score'] for e in source] == [2, 1]
  settings = {'files': str(tmp_path), 'caption': 'lang'}
  source = kinds.make_source('parquet', settings, workers=0)
  assert [e['caption'] for e in source] == ['de AT', 'en']
  assert len(set(source.keys.tolist())) == 2


def test_missing_columns(tmp_path):
  write(tmp_path / 'a.parquet', image=[PNG], caption=['x'])
  with pytest.raises(ValueError, match=r"no column \['text'\], but \['image'"):
    parquet.Parquet(tmp_path / '*.parquet', workers=0)


@pytest.mark.parametrize('keep', [0, 3, 50, -4])
def test_broken_files(tmp_path, keep):
  write(tmp_path / 'a.parquet', image=[PNG], text=['x'])
  content = (tmp_path / 'a.parquet').read_bytes()
  (tmp_path / 'a.parquet').write_bytes(content[:keep])
  with pytest.raises(
    ValueError, match='a.parquet is a truncated or corrupt pa'
  ):
    parquet.Parquet(tmp_path / '*.parquet', workers=0)


@pytest.mark.parametrize('kind', ['parquet', 'tar'])
def test_pointers_of_git_lfs(tmp_path, kind):
  pointer = 'version https://git-lfs.github.com/spec/v1\nsize 12345\n'
  (tmp_path / f'a.{kind}').write_text(pointer)
  source = {'parquet': 'parquet', 'tar': 'webdataset'}[kind]
  name = {'parquet': 'files', 'tar': 'shards'}[kind]
  message = f'a.{kind}: it is a git-lfs pointer .*`git lfs pull`'
  with pytest.raises(ValueError, match=message):
    kinds.make_source(source, {name: str(tmp_path)}, workers=0)


def test_a_broken_row_group(tmp_path):
  write(tmp_path / 'a.parquet', image=[PNG], text=['x'])
  content = bytearray((tmp_path / 'a.parquet').read_bytes())
  content[4:60] = bytes(56)
  (tmp_path / 'a.parquet').write_bytes(content)
  with pytest.raises(
    ValueError, match='a.parquet is a truncated or corrupt pa'
  ):
    parquet.Parquet(tmp_path / '*.parquet', workers=0)


def test_large_row_groups(tmp_path, monkeypatch, caplog):
  write(tmp_path / 'a.parquet', image=[PNG] * 4, text=['x'] * 4)
  monkeypatch.setattr(parquet, 'LARGE_ROW_GROUP', 10)
  parquet.Parquet(tmp_path / '*.parquet', workers=0)
  assert 'rewrite it with fewer rows' in caplog.text


def test_no_file(tmp_path):
  with pytest.raises(FileNotFoundError, match='no parquet file matches'):
    parquet.Parquet(tmp_path / '*.parquet')


def test_a_file_that_vanished(tmp_path):
  write(tmp_path / 'a.parquet', image=[PNG], text=['x'])
  source = parquet.Parquet(tmp_path / '*.parquet', workers=0)
  (tmp_path / 'a.parquet').unlink()
  with pytest.raises(images.UnreadableImage, match='row 0, in group 0'):
    source[0]
