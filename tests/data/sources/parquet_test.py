"""Tests parquet: plain and wrapped images, missing columns, row groups."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data import images
from sdxl_jax.data.sources import parquet
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))


def write(path, row_group_size=2, **columns):
  pq.write_table(pa.table(columns), path, row_group_size=row_group_size)


def test_plain_bytes_and_other_names(tmp_path):
  names = [f'number {n}' for n in range(5)]
  write(tmp_path / 'a.parquet', jpg=[PNG] * 5, alt=names, p=[1, 2, None, 4, 5])
  source = parquet.Parquet(
    tmp_path / '*.parquet', 'jpg', 'alt', score='p', workers=0
  )
  assert [source[i]['caption'] for i in range(5)] == names
  assert source[4]['image'] == PNG and source[4]['aesthetic_score'] == 5
  assert 'aesthetic_score' not in source[2]
  assert source.name(3) == f'{tmp_path}/a.parquet: row 1 of group 1'


def test_missing_columns(tmp_path):
  write(tmp_path / 'a.parquet', image=[PNG], caption=['x'])
  with pytest.raises(ValueError, match=r"no column \['text'\], but \['image'"):
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
  with pytest.raises(images.UnreadableImage, match='row 0 of group 0'):
    source[0]
