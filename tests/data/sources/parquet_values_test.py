"""Tests values of parquet files that Python cannot hold, and odd images."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data.sources import kinds, parquet_values, record_filters
from tests.support import datasets, odd_parquet

PNG = datasets.encode(datasets.ramp(8, 12))
TEXT = odd_parquet.broken_text(b'one', b'caf\xe9')


@pytest.mark.parametrize(
  'column, values',
  [
    (TEXT, ['one', b'caf\xe9']),
    (TEXT.dictionary_encode(), ['one', b'caf\xe9']),
    (pa.ListArray.from_arrays([0, 2], TEXT), [['one', b'caf\xe9']]),
    (
      pa.StructArray.from_arrays([TEXT], ['en']),
      [{'en': 'one'}, {'en': b'caf\xe9'}],
    ),
    (
      pa.array([1234567, None], pa.timestamp('ns')),
      ['1970-01-01 00:00:00.001234567', None],
    ),
  ],
)
def test_values(column, values):
  rows = parquet_values.to_rows(pa.table({'a': column}))
  assert rows == [{'a': value} for value in values]


def load(folder, columns, filters=(), **settings):
  """Returns the captions and the account of a parquet file."""
  pq.write_table(pa.table(columns), folder / 'a.parquet')
  source = kinds.make_source(
    'parquet',
    {'files': str(folder), **settings},
    record_filters.Filters(columns=filters),
    0,
    str,
  )
  captions = [source[i]['caption'] for i in range(len(source))]
  account = source.account()
  lost = {reason: left.count for reason, left in account.left_out.items()}
  assert account.seen == account.used + sum(lost.values())
  return captions, str(account)


def test_text_that_is_not_utf8_is_counted(tmp_path):
  captions, account = load(tmp_path, {'image': [PNG] * 2, 'text': TEXT})
  assert captions == ['one']
  assert 'row 1, in group 0: byte 3 (0xe9)' in account
  columns = {'image': [PNG] * 2, 'text': ['a', 'b'], 'tag': TEXT}
  filters = (('tag', '!=', 'one'),)
  assert load(tmp_path, columns, filters)[0] == ['b']


def test_images_that_are_text(tmp_path):
  """The account has the start of an image in base64, and the remedy."""
  text = base64.b64encode(bytes(9000)).decode()
  columns = {'image': [text, text], 'text': ['a', 'b']}
  with pytest.raises(ValueError, match='12,000 characters is no path') as error:
    load(tmp_path, columns)
  assert len(str(error.value)) < 1500


def test_fields_of_images(tmp_path):
  (tmp_path / 'b.png').write_bytes(PNG)
  images = [{'path': 'b.png', 'bytes': None}]
  columns = {'image': images, 'text': ['a']}
  assert load(tmp_path, columns, image='image.path')[0] == ['a']
  columns = {'image': [images], 'text': ['a']}
  with pytest.raises(ValueError, match='list, not one image'):
    load(tmp_path, columns, image='image.path')


def test_a_column_twice(tmp_path):
  columns = [pa.array([PNG]), pa.array(['a']), pa.array(['b'])]
  table = pa.Table.from_arrays(columns, ['image', 'text', 'text'])
  pq.write_table(table, tmp_path / 'a.parquet')
  with pytest.raises(ValueError, match="a.parquet has the column 'text' twice"):
    kinds.make_source('parquet', {'files': str(tmp_path)}, workers=0)
