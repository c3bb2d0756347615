"""Tests how one record's crops are made for a cache."""

import types

import numpy as np
import pytest

from sdxl_jax.data import images, precompute_writer


class BrokenSource:
  """A source whose reader raises an error that is not of an image."""

  def name(self, i):
    return f'shard.tar, member {i}'

  def __getitem__(self, i):
    raise KeyError('caption')


def test_any_error_is_an_unreadable_record():
  make_crops = precompute_writer.CropMaker(
    source=BrokenSource(),
    keys=np.arange(8, dtype=np.uint64),
    bucket=(16, 16),
    layout=None,
    seed=0,
    background='white',
  )
  error = make_crops(7)
  assert isinstance(error, images.UnreadableImage)
  assert 'shard.tar, member 7' in str(error) and "'caption'" in str(error)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_numbers_that_are_not_finite_are_of_a_record(dtype):
  """The flag is named where it may help."""
  fields = [('moments', dtype, (2,)), ('crop_top_left', 'int32', (2,))]
  text = [('context', dtype, (3,)), ('pooled', dtype, (3,))]
  layout = types.SimpleNamespace(variant=lambda bucket: fields, text=text)
  examples = [{'name': name, 'crops': [(0, 1)]} for name in ('a.png', 'b.png')]
  rows = precompute_writer.pack_rows(
    types.SimpleNamespace(bucket=(16, 16)),
    layout,
    examples,
    [np.zeros(2), np.array([1, np.nan])],
    [(np.zeros(3), np.zeros(3))] * 2,
  )
  assert [len(row) for row in next(rows)] == [12, 12]
  with pytest.raises(
    ValueError, match='^b.png: moments has .* weights'
  ) as info:
    next(rows)
  assert ('--dtype=bfloat16' in str(info.value)) == (dtype == 'float16')
