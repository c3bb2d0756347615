"""The rows of validation: which records, and the same rows in any batches."""

import jax
import numpy as np
import pytest

from sdxl_jax.data import batch_rows, captioning, images, validation_records
from sdxl_jax.data.sources import held_out, kinds
from sdxl_jax.data.validation_records import HELD_OUT, TRAINED

TABLE = ((16, 16), (16, 24), (24, 16))
SETTINGS = {
  'resolution': 40,
  'length': 900,
  'objects': 3,
  'colours': 3,
  'aspects': (1.0, 0.66, 0.66, 0.66, 1.5),
}


@pytest.fixture(scope='module')
def split():
  source = kinds.make_source('scenes', SETTINGS, say=list)
  return held_out.split(source, 0.2)


def tokenize(captions):
  codes = [[ord(c) for c in text[:77].ljust(77)] for text in captions]
  return np.stack([codes, codes], 1), [text[77:] for text in captions]


def spec_of(bucket, rows):
  def spec(shape, dtype):
    return jax.ShapeDtypeStruct((rows, *shape), dtype)

  return {
    'image': spec((*bucket, 3), np.float32),
    'tokens': spec((2, 77), np.int32),
    'original_size': spec((2,), np.int32),
    'crop_top_left': spec((2,), np.int32),
    'target_size': spec((2,), np.int32),
  }


def read(records, size, hosts=1, **options):
  """Returns {record: its row}, as so many hosts read batches of a size."""
  options = batch_rows.BatchOptions(**{'num_threads': 2} | options)
  rows = {}
  for host in range(hosts):
    reader = validation_records.ValidationRecords(records, tokenize, options)
    used = list(reader.by_bucket)
    own = range(host, size, hosts)
    batches = reader.batches(
      dict.fromkeys(used, size),
      dict.fromkeys(used, own),
      {b: spec_of(b, size) for b in used},
    )
    for batch in batches:
      for i, row in enumerate(own):
        values = {name: x[i] for name, x in batch.rows.items()}
        if row < len(batch.records):
          assert values['readable']
          rows[batch.records[row]] = values
        else:
          assert not values['readable'] and not values['image'].any()
  return rows


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_records_are_of_the_fullest_buckets(split):
  limits = validation_records.Limits(records=40, buckets=2)
  records = validation_records.choose(split, TABLE, limits)
  held = [r for r in records if r.group == HELD_OUT]
  trained = [r for r in records if r.group == TRAINED]
  assert len(held) == len(trained) == 40
  assert {r.bucket for r in records} <= set(TABLE)
  assert len({r.bucket for r in records}) == 2 and records[0].bucket == (16, 24)
  for bucket in TABLE:  # as many of each
    counts = [sum(r.bucket == bucket for r in g) for g in (held, trained)]
    assert counts[0] == counts[1]
  # The least hashes, so that a few more records change few of them.
  everything = validation_records.Limits(records=10**6, buckets=2)
  all_held = [
    r.hash
    for r in validation_records.choose(split, TABLE, everything)
    if r.group == HELD_OUT
  ]
  assert sorted(r.hash for r in held) == sorted(all_held)[:40]
  assert max(all_held) < min(r.hash for r in trained)
  assert max(all_held) < 0.2 * 2**64


def test_all_buckets(split):
  limits = validation_records.Limits(records=10**6, buckets=99)
  records = validation_records.choose(split, TABLE, limits)
  held = sum(len(leaf) for _, leaf in split.held_out)
  assert sum(r.group == HELD_OUT for r in records) == held
  assert {r.bucket for r in records} == set(TABLE)


def test_a_row_depends_on_its_record_alone(split):
  """Not on hosts, batches, or the records beside it."""
  limits = validation_records.Limits(records=10, buckets=3)
  records = validation_records.choose(split, TABLE, limits)
  one = read(records, 4)
  assert set(one) == set(records)
  for other in (read(records, 6, hosts=2), read(records[::2], 3)):
    assert all(same(row, one[record]) for record, row in other.items())
  # The same record in more data has the same row.
  more = kinds.make_source('scenes', SETTINGS | {'length': 1200}, say=list)
  more = validation_records.choose(held_out.split(more, 0.2), TABLE, limits)
  rows = {r.hash: row for r, row in read(more, 4).items()}
  common = [(row, rows[r.hash]) for r, row in one.items() if r.hash in rows]
  assert len(common) > 5 and all(same(*pair) for pair in common)


def test_nothing_is_dropped_or_mirrored(split):
  limits = validation_records.Limits(records=10, buckets=3)
  records = validation_records.choose(split, TABLE, limits)
  plain = read(records, 4)
  captions = captioning.Captioning(
    caption_tag_dropout_rate=1.0,
    caption_separator=' ',
    caption_dropout_every_n_epochs=1,
  )
  dropping = read(
    records, 4, flip_probability=1.0, caption_dropout=1.0, captions=captions
  )
  for record, row in plain.items():
    found = dropping[record]
    assert np.array_equal(found['image'], row['image'])
    assert len(set(found['tokens'][0])) > 3  # the tags are all there


def test_each_record_has_an_order_of_tags(split):
  """It follows from the record's hash, the same each time."""
  limits = validation_records.Limits(records=20, buckets=3)
  records = validation_records.choose(split, TABLE, limits)
  tags = captioning.Captioning(shuffle_caption=True, caption_separator=' ')
  plain, first, second = (
    read(records, 4, **options)
    for options in ({}, {'captions': tags}, {'captions': tags})
  )
  orders = {}
  for record, row in plain.items():
    assert same(first[record], second[record])
    words, shuffled = (
      ''.join(map(chr, x['tokens'][0])).replace(',', ' ').split()
      for x in (row, first[record])
    )
    assert sorted(words) == sorted(shuffled)
    order = tuple(words.index(word) for word in shuffled)
    orders.setdefault(len(words), set()).add(order)
  assert max(map(len, orders.values())) > 3


def test_what_cannot_be_read_is_left_out(split, caplog):
  limits = validation_records.Limits(records=6, buckets=1)
  records = validation_records.choose(split, TABLE, limits)

  class Broken:
    def __getitem__(self, i):
      raise images.UnreadableImage('lost.png', 'is gone')

    def name(self, i):
      return 'lost.png'

  records[1] = records[1]._replace(source=Broken())
  reader = validation_records.ValidationRecords(
    records, tokenize, batch_rows.BatchOptions(num_threads=1)
  )
  bucket = records[0].bucket
  spec = {bucket: spec_of(bucket, len(records))}
  for _ in range(2):
    (batch,) = reader.batches(
      {bucket: len(records)}, {bucket: range(len(records))}, spec
    )
    expected = [i != 1 for i in range(len(records))]
    assert batch.rows['readable'].tolist() == expected
    assert not batch.rows['image'][1].any()
  assert caplog.text.count('left out of validation') == 1


def test_fixed_conditions_hold_in_validation_too(split):
  limits = validation_records.Limits(records=8, buckets=2)
  records = validation_records.choose(split, TABLE, limits)
  for row in read(records, 4, original_size=(64, 48)).values():
    assert row['original_size'].tolist() == [64, 48]
