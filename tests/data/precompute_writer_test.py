"""Tests how one record's crops are made for a cache."""

import numpy as np

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
