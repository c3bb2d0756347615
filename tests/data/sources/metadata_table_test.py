"""Tests that a CSV file is read without loss, or refused with the line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data.sources import metadata_table
from tests.support import odd_parquet

IMAGES = {'a.png', 'b.png', 'c.png'}


def read(tmp_path, content, text='text', encoding=''):
  """Returns {file_name: caption} of a metadata.csv, and the rows joined."""
  path = tmp_path / 'metadata.csv'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  table = metadata_table.read(path, text, encoding, IMAGES.__contains__)
  return {row['file_name']: row.get(text) for _, row in table.rows}, table


def test_text_with_commas_without_quotes(tmp_path):
  captions, table = read(
    tmp_path,
    'file_name,text\na.png,1girl, solo, "red" dress,\nb.png,"x, y"\nc.png,z,\n',
  )
  assert captions == {
    'a.png': '1girl, solo, "red" dress,',
    'b.png': 'x, y',
    'c.png': 'z',  # the last comma is a spreadsheet's
  }
  assert table.joined == 1


@pytest.mark.parametrize(
  'header, row',
  [
    ('text,file_name', '1girl, solo,a.png'),
    ('file_name,text,aesthetic_score', 'a.png,1girl, solo,5.5'),
    ('file_name,text,licence', 'a.png,1girl, solo,CC0'),
    ('file_name,text', 'a.png,"x, y", z'),
  ],
)
def test_commas_that_leave_a_choice(tmp_path, header, row):
  with pytest.raises(ValueError, match='double quotes') as caught:
    read(tmp_path, f'{header}\n\n{row}\n')
  assert f'line 3: {row}' in str(caught.value)
  assert '(1):' in str(caught.value)


@pytest.mark.parametrize(
  'rows, line',
  [
    ('a.png,"a dog\nb.png,a cat\n', 2),  # the rest of the file is one text
    ('a.png,a dog\nb.png,"a cat\nc.png,"a fox"\n', 3),
    ('a.png,a dog\nb.png,"a "big" cat"\n', 3),
    ('a.png,"a dog\nb.png,a cat\nc.png,"\n', 2),
  ],
)
def test_quotes_that_do_not_match(tmp_path, rows, line):
  with pytest.raises(ValueError, match=f'metadata.csv(.|\n)*line {line}'):
    read(tmp_path, f'file_name,text\n{rows}')


def test_text_of_several_lines(tmp_path):
  captions, _ = read(tmp_path, 'file_name,text\r\na.png,"one\ntwo, a.png"\r\n')
  assert captions == {'a.png': 'one\ntwo, a.png'}


@pytest.mark.parametrize('delimiter', [',', ';', '\t', '|'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_delimiters_and_marks(tmp_path, delimiter, encoding):
  lines = ['file_name|text', 'a.png|un café', 'b.png|"a|b"']
  content = '\r\n'.join(lines).replace('|', delimiter)
  captions, _ = read(tmp_path, content.encode(encoding))
  assert captions == {'a.png': 'un café', 'b.png': f'a{delimiter}b'}


def test_long_fields(tmp_path):
  """The csv module has a limit of 131,072 characters."""
  text = 'a ' * 100_000
  captions, _ = read(tmp_path, f'file_name,text,more\na.png,{text},{text}\n')
  assert captions == {'a.png': text}


def test_missing_and_double_columns(tmp_path):
  for content, words in (
    ('image,text\n', r"no column 'file_name', but \['image', 'text'\]"),
    ('file_name,label\n', r"no column 'text' of captions, but .*'label'"),
    ('file_name,text,text\n', "column 'text' twice"),
  ):
    with pytest.raises(ValueError, match=words):
      read(tmp_path, content)
  captions, _ = read(tmp_path, 'file_name,text\na.png\n')
  assert captions == {'a.png': None}


def test_quotes_behind_spaces(tmp_path):
  """They are quotes, as spreadsheets read them, and not a part of the text."""
  captions, table = read(
    tmp_path,
    'file_name, text\na.png, "x, ""y"""\nb.png, red, "blue"\nc.png, "z"\n',
  )
  stripped = {name: text.strip() for name, text in captions.items()}
  assert stripped == {'a.png': 'x, "y"', 'b.png': 'red, "blue"', 'c.png': 'z'}
  assert table.joined == 1


def test_values_of_parquet_that_python_cannot_hold(tmp_path):
  """None of them ends the start, nor takes the rest of its row with it."""
  path = tmp_path / 'metadata.parquet'
  columns = {
    'file_name': ['a.png', 'b.png'],
    'text': odd_parquet.broken_text(b'one', b'caf\xe9'),
    'late': pa.array([1 << 60, 0], pa.timestamp('us')),
  }
  pq.write_table(pa.table(columns), path)
  rows = [row for _, row in metadata_table.read(path, 'text', '', str).rows]
  assert [row['text'] for row in rows] == ['one', b'caf\xe9']
  assert 'out of range' in rows[0]['late']


def test_a_column_of_parquet_twice(tmp_path):
  path = tmp_path / 'metadata.parquet'
  columns = [pa.array(['a.png']), pa.array(['x']), pa.array(['y'])]
  names = ['file_name', 'text', 'text']
  pq.write_table(pa.Table.from_arrays(columns, names), path)
  with pytest.raises(ValueError, match="the column 'text' twice"):
    metadata_table.read(path, 'text', '', str)
