"""Tests the tables of an index: names of the data's columns, several files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data.sources import kinds, record_filters
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))


@pytest.mark.parametrize('kind', sorted({*datasets.WRITERS} - {'tfds'}))
@pytest.mark.parametrize(
  'name', ['width', 'problem', 'key', 'reason', 'captions', 'record', 'row']
)
def test_columns_with_names_of_the_index(tmp_path, kind, name):
  """As img2dataset's width, key and status are."""
  values = [640, 7, None]
  if kind == 'folder':
    lines = []
    for i, value in enumerate(values):
      (tmp_path / f'{i}.png').write_bytes(PNG)
      lines.append({'file_name': f'{i}.png', 'text': f'{i}', name: value})
    lines = '\n'.join(map(json.dumps, lines))
    (tmp_path / 'metadata.jsonl').write_text(lines)
    settings = {'path': tmp_path}
  elif kind == 'webdataset':
    examples = [datasets.example(i, (8, 12), text=f'{i}') for i in range(3)]
    settings = datasets.write_webdataset(
      tmp_path, examples, fields=[{name: value} for value in values]
    )
  else:
    table = {'image': [PNG] * 3, 'text': ['0', '1', '2'], name: values}
    pq.write_table(pa.table(table), tmp_path / '0.parquet')
    settings = {'files': str(tmp_path)}
  filters = record_filters.Filters(columns=((name, '>', 100),))
  source = kinds.make_source(kind, settings, filters, 0, str)
  assert [e['caption'] for e in source] == ['0']
  assert source.sizes.tolist() == [[8, 12]]


def test_columns_of_two_types_name_their_files(tmp_path):
  for name, values in (('a', [None]), ('b', [1]), ('c', ['high'])):
    table = pa.table({'image': [PNG], 'text': ['x'], 'p': values})
    pq.write_table(table, tmp_path / f'{name}.parquet')
  filters = record_filters.Filters(columns=(('p', '>', 0),))
  with pytest.raises(ValueError) as error:
    kinds.make_source('parquet', {'files': tmp_path}, filters, 0)
  found = f'(p: double in {tmp_path}/b.parquet, string in {tmp_path}/c.parquet)'
  assert found in str(error.value)


def test_all_broken_files_are_named(tmp_path):
  for i in range(4):
    table = pa.table({'image': [PNG], 'text': ['x']})
    pq.write_table(table, tmp_path / f'{i}.parquet')
  for i in (1, 3):
    path = tmp_path / f'{i}.parquet'
    path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='(?s)2 files:.*1.parquet.*3.parquet'):
    kinds.make_source('parquet', {'files': tmp_path}, workers=0)
