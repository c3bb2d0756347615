"""Tests the pipeline: hosts, resuming, substitution, contents of batches."""

import json
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.data import batch_rows, buckets, dataset, pipeline, transforms
from sdxl_jax.data.sources import kinds, synthetic
from sdxl_jax.text import tokenizer
from tests.support import tiny_config

FIVE = ((28, 56), (32, 48), (40, 40), (48, 32), (56, 28))


def tokenize(captions):
  """Returns the codes of a caption's first letters, for both text encoders."""
  codes = [[ord(c) for c in text[:77].ljust(77)] for text in captions]
  return np.stack([codes, codes], 1), [text[77:] for text in captions]


@pytest.fixture(scope='module')
def source():
  return synthetic.Scenes(40, length=300, objects=8, colours=6)


def make(source, batch_size=8, host=0, hosts=1, **options):
  """Makes the batches of one of several hosts, which take rows in turn."""
  schedule = buckets.Schedule(source.sizes, FIVE, 5, batch_size)
  options = batch_rows.BatchOptions(**{'num_threads': 2} | options)
  rows = range(host, batch_size // options.accumulation_steps, hosts)
  return pipeline.make_batches(source, tokenize, schedule, rows, options)


def join(shares):
  """Interleaves the rows of all hosts in their order."""
  return {
    key: np.stack([share[key] for share in shares], 1).reshape(
      -1, *shares[0][key].shape[1:]
    )
    for key in shares[0]
  }


def take(batches, n):
  """Returns the first batches, and closes the iterator."""
  first = [next(batches) for _ in range(n)]
  batches.close()
  return first


def assert_same(a, b):
  assert a[0] == b[0] and a[1].keys() == b[1].keys()
  for key in a[1]:
    np.testing.assert_array_equal(a[1][key], b[1][key])


def test_keys_and_shapes(source):
  batches = make(source)
  for step in range(12):
    (h, w), batch = next(batches)
    assert (h, w) in FIVE
    shapes = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
    assert shapes == {
      'image': ((8, h, w, 3), 'float32'),
      'tokens': ((8, 2, 77), 'int32'),
      'original_size': ((8, 2), 'int32'),
      'crop_top_left': ((8, 2), 'int32'),
      'target_size': ((8, 2), 'int32'),
    }
    assert (batch['target_size'] == (h, w)).all()
    ids = batches.record_ids(step)
    np.testing.assert_array_equal(batch['original_size'], source.sizes[ids])
    captions = [source[int(i)]['caption'] for i in ids]
    np.testing.assert_array_equal(batch['tokens'], tokenize(captions)[0])
    assert -1 <= batch['image'].min() and batch['image'].max() <= 1
  batches.close()


@pytest.mark.parametrize('threads, prefetch', [(8, 0), (0, 8), (8, 1)])
def test_nothing_ahead(source, threads, prefetch):
  """Threads and prefetching are off at 0, and change no batch."""
  expected = take(make(source), 4)
  batches = make(source, num_threads=threads, prefetch=prefetch)
  assert_same(next(batches), expected[0])
  assert_same(next(batches), expected[1])
  assert batches.get_state()['batches'] == 2
  batches.set_state({'batches': 3})
  assert_same(next(batches), expected[3])
  batches.close()


@pytest.mark.parametrize('hosts', [2, 4])
def test_hosts_share_the_global_batch(source, hosts):
  one_host = take(make(source, flip_probability=0.5), 40)
  shares = [
    take(make(source, flip_probability=0.5, host=i, hosts=hosts), 40)
    for i in range(hosts)
  ]
  for step, (bucket, batch) in enumerate(one_host):
    assert all(share[step][0] == bucket for share in shares)
    assert_same((bucket, batch), (bucket, join([s[step][1] for s in shares])))


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_every_record_once_in_each_of_two_passes(hosts):
  """Uses a skewed distribution, whose remainders open the next pass."""
  settings = dict(objects=8, colours=6, aspects=(1.0,) * 12 + (0.5, 2.0, 0.7))
  source = synthetic.Scenes(30, length=203, scales=(0.9, 1.1), **settings)
  tables = ((16, 16), (12, 24), (24, 12), (12, 16))
  schedule = buckets.Schedule(source.sizes, tables, 5, 8)
  read = {bucket: [] for bucket in tables}

  class Recorded:
    """Appends the records that are read to `rows`."""

    sizes = source.sizes

    def __getitem__(self, i):
      rows.append(i)
      return source[i]

  shares = []
  for host in range(hosts):
    rows = []
    options = batch_rows.BatchOptions(num_threads=0)
    batches = pipeline.make_batches(
      Recorded(), tokenize, schedule, range(host, 8, hosts), options
    )
    steps, records = [], []
    while len(steps) < 3 * len(source) // 8:
      before = len(rows)
      bucket, _ = next(batches)
      steps.append(bucket)
      records.append(rows[before:])
    batches.close()
    shares.append((steps, records))
  assert all(steps == shares[0][0] for steps, _ in shares)
  for step, bucket in enumerate(shares[0][0]):
    all_hosts = np.stack([records[step] for _, records in shares], 1)
    read[bucket] += all_hosts.reshape(-1).tolist()
  counts = np.bincount(schedule.assigned, minlength=4)
  assert min(counts) > 8 and (counts % 8).any()
  for b, bucket in enumerate(tables):
    members = np.flatnonzero(schedule.assigned == b).tolist()
    n = len(members)
    assert sorted(read[bucket][:n]) == members
    assert sorted(read[bucket][n : 2 * n]) == members
    assert read[bucket][:n] != read[bucket][n : 2 * n]


def test_micro_batches_are_the_batch(source):
  """Their gradients, summed, come from the records of one step."""
  batches = take(make(source), 10)
  micro_batches = take(make(source, accumulation_steps=4), 40)
  for step, (bucket, batch) in enumerate(batches):
    four = micro_batches[4 * step : 4 * step + 4]
    assert all(micro_batch[0] == bucket for micro_batch in four)
    assert_same((bucket, batch), (bucket, join([batch for _, batch in four])))


def test_position_does_not_depend_on_accumulation(source):
  batches = make(source, accumulation_steps=2)
  for _ in range(6):
    next(batches)
  assert batches.get_state()['batches'] == 3
  resumed = make(source)
  resumed.set_state(batches.get_state())
  expected = take(make(source), 4)[3]
  assert_same(next(resumed), expected)
  np.testing.assert_array_equal(
    np.sort(np.concatenate([batches.record_ids(6), batches.record_ids(7)])),
    np.sort(resumed.record_ids(3)),
  )
  resumed.close()
  batches.close()


def ids_of(batches, steps):
  """Returns the records of these batches, [(bucket, [record, ...]), ...]."""
  return [
    (batches.schedule.records(i).bucket, batches.record_ids(i).tolist())
    for i in steps
  ]


def test_larger_batches_go_on_from_the_records_seen(source):
  """No record is left out of the pass or comes twice, and restarts agree."""
  small = make(source, batch_size=4)
  seen = ids_of(small, range(11))
  for _ in range(11):
    next(small)
  state = json.loads(json.dumps(small.get_state()))
  assert state == json.loads(json.dumps(small.get_state(11)))
  small.close()
  large = make(source, batch_size=12)
  large.set_state(state)
  rest = ids_of(large, range(11, 60))
  for bucket, ids in rest[:3]:
    size, batch = next(large)
    np.testing.assert_array_equal(batch['original_size'], source.sizes[ids])
    assert size == bucket
  # A restart in the midst of it, of two hosts, is the same.
  later = json.loads(json.dumps(large.get_state()))
  assert later['batches'] == 14
  large.close()
  for host in range(2):
    again = make(source, batch_size=12, host=host, hosts=2)
    again.set_state(later)
    assert ids_of(again, range(14, 60)) == rest[3:]
    bucket, batch = next(again)
    ids = rest[3][1][host::2]
    np.testing.assert_array_equal(batch['original_size'], source.sizes[ids])
    again.close()
  # Each bucket's first pass is complete.
  schedule = again.schedule
  for b, bucket in enumerate(FIVE):
    members = np.flatnonzero(schedule.assigned == b).tolist()
    ids = sum((ids for size, ids in seen + rest if size == bucket), [])
    assert len(members) < len(ids)
    assert sorted(ids[: len(members)]) == members


def test_a_position_of_an_earlier_version(source):
  """Counts batches only: these go on as before, others by the records."""
  expected = ids_of(make(source), range(40))
  batches = make(source)
  batches.set_state({'batches': 9})
  assert ids_of(batches, range(9, 40)) == expected[9:]
  assert batches.get_state()['origin']['step'] == 0
  batches.set_state({'batches': 9, 'batch_size': 4}, batches=9)
  small = make(source, batch_size=4)
  assert batches.schedule.taken(9) == small.schedule.taken(9)
  batches.close()
  small.close()


def test_other_records_begin_a_pass(source):
  """In an order, and with crops, that no pass before had."""
  batches = make(source)
  state = batches.get_state(25)
  batches.close()
  settings = dict(objects=8, colours=6)
  other = synthetic.Scenes(40, length=299, **settings)
  for changed, new_pass in ((other, False), (source, True)):
    batches = make(changed)
    batches.set_state(state, new_pass=new_pass)
    passes = {
      p for i in range(25, 40) for p in batches.schedule.records(i).passes
    }
    assert min(passes) == state['passes'] >= 1
    n = len(changed)
    assert sum(batches.schedule.taken(25)) == state['passes'] * n
    batches.close()


@pytest.mark.parametrize('threads', [0, 1, 3])
def test_resuming_is_a_seek(source, threads):
  options = dict(caption_dropout=0.3, num_threads=threads)
  uninterrupted = take(make(source, **options), 90)  # over two passes
  batches = make(source, **options)
  for _ in range(7):
    next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  batches.close()
  resumed = make(source, **options)
  resumed.set_state(state)
  assert_same(next(resumed), uninterrupted[7])
  resumed.set_state({'batches': 83})
  assert_same(next(resumed), uninterrupted[83])
  resumed.close()


def test_two_passes_crop_differently(source):
  batches = make(source)
  crops = {}
  for step in range(300 // 8 * 2 + 5):
    _, batch = next(batches)
    for record, crop in zip(batches.record_ids(step), batch['crop_top_left']):
      crops.setdefault(int(record), []).append(tuple(crop.tolist()))
  batches.close()
  twice = [c for c in crops.values() if len(c) > 1 and max(map(max, c)) > 2]
  assert len(twice) > 50
  assert np.mean([c[0] != c[1] for c in twice]) > 0.6


@pytest.fixture
def damaged(tmp_path):
  """Writes 24 images of two shapes, three with broken pixels."""
  rng = np.random.default_rng(0)
  for i in range(24):
    h, w = [(40, 40), (56, 28)][i % 2]
    path = tmp_path / f'{i:02}.png'
    pixels = rng.integers(0, 256, (h, w, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.with_suffix('.txt').write_text(f'noise {i}')
    if i in (4, 6, 13):
      path.write_bytes(path.read_bytes()[:500])
  return tmp_path


def test_corrupt_images_are_replaced_alike_on_all_hosts(damaged, caplog):
  source = kinds.make_source('folder', {'path': damaged}, workers=0)
  assert len(source) == 24
  batches = make(source, batch_size=4)
  one_host = [next(batches) for _ in range(12)]
  names = {f'{damaged}/{i:02}.png' for i in (4, 6, 13)}
  assert batches.counts()['substituted'] >= len(names)
  assert all(name in caplog.text for name in names)
  for step, (_, batch) in enumerate(one_host):
    for record, tokens in zip(batches.record_ids(step), batch['tokens']):
      # The next of the same shape; after 4 comes 6, which is broken too.
      read = {4: 8, 6: 8, 13: 15}.get(int(record), int(record))
      np.testing.assert_array_equal(tokens, tokenize([f'noise {read}'])[0][0])
  batches.close()
  shares = [
    take(make(source, batch_size=4, host=i, hosts=4), 12) for i in range(4)
  ]
  for step, (bucket, batch) in enumerate(one_host):
    images = np.concatenate([share[step][1]['image'] for share in shares])
    assert_same(
      (bucket, {'image': batch['image']}), (bucket, {'image': images})
    )


@pytest.mark.parametrize('length', [75, 150])
def test_cut_captions_are_counted_and_told_once(tmp_path, caplog, length):
  """Each caption has 100 tokens, and every one is another."""
  for i in range(30):
    Image.new('RGB', (16, 16)).save(tmp_path / f'{i}.png')
    words = ['red'] * 95 + [str(i // 10), str(i % 10), 'a', 'b', 'c']
    (tmp_path / f'{i}.txt').write_text(' '.join(words))
  config = tiny_config.get_config()
  config.max_token_length = length
  config.data.update(source='folder', index_workers=0, buckets=((16, 16),))
  config.data.folder.path = str(tmp_path)
  source = dataset.make_source(config, list)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    batches = dataset.make_batches(config, source, tokenizer.load(), range(4))
    steps = take(batches, 30)
  if length == 150:
    assert steps[0][1]['tokens'].shape == (4, 2, 2, 77)
    assert batches.counts()['cut_captions'] == 0 and not caplog.text
    return
  assert steps[0][1]['tokens'].shape == (4, 2, 77)
  assert batches.counts()['cut_captions'] >= 30 * 4
  (line,) = [r.getMessage() for r in caplog.records]
  assert '4 of 4 captions (100.0%) have more than 75 tokens' in line
  assert 'config.max_token_length = 150 or 225' in line and "'red red" in line


def test_too_many_corrupt_images_stop_the_run(damaged):
  source = kinds.make_source('folder', {'path': damaged}, workers=0)
  for path in damaged.glob('*.png'):
    path.write_bytes(b'gone')
  with pytest.raises(ValueError, match='16 records in a row of bucket'):
    next(make(source))


class Altered:
  """Scenes of which some are altered, or raise when they are read."""

  def __init__(self, source, alterations):
    self.scenes, self.alterations = source, alterations
    self.sizes, self.name = source.sizes, source.name

  def __len__(self):
    return len(self.scenes)

  def __getitem__(self, i):
    example = self.scenes[i] | {'aesthetic_score': 5.0}
    if (alter := self.alterations.get(i)) is None:
      return example
    if isinstance(alter, Exception):
      raise alter
    return example | alter


# What readers of odd files have raised, and what they have returned.
ODD = {
  'key': KeyError('caption'),
  'attribute': AttributeError("'NoneType' object has no attribute 'strip'"),
  'type': TypeError('bytes-like object is required'),
  'memory': MemoryError(),
  'system': OSError(5, 'Input/output error'),
  'unicode': UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'invalid start byte'),
  'null caption': {'caption': None},
  'list of captions': {'caption': ['a', 'b']},
  'bytes as caption': {'caption': b'a dog'},
  'half of a pair': {'caption': 'a dog \ud83d'},
  'NaN score': {'aesthetic_score': float('nan')},
  'infinite score': {'aesthetic_score': float('inf')},
  'huge score': {'aesthetic_score': 1e300},
  'score in words': {'aesthetic_score': 'good'},
  'null score': {'aesthetic_score': None},
  'no image': {'image': None},
  'floats as image': {'image': np.zeros((40, 40, 3))},
  'not an image': {'image': b'<html>'},
  'gigabytes': {'original_size': (1, 10_000_000)},
}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('kind', ODD)
def test_an_odd_record_is_replaced_and_named(source, kind, caplog):
  rows = []
  for alterations in ({}, {7: ODD[kind], 31: ODD[kind]}):
    batches = make(Altered(source, alterations), aesthetic_score=True)
    batches.close()
    schedule, make_row = batches.schedule, batches._rows.make_row
    records = [7, 31, schedule.next_in_bucket(7), schedule.next_in_bucket(31)]
    assigned = schedule.assigned[records]
    rows.append(
      [make_row(FIVE[b], record, 0) for b, record in zip(assigned, records)]
    )
  for row, neighbour in zip(rows[1][:2], rows[0][2:]):
    assert row['caption'] == neighbour['caption']
    np.testing.assert_array_equal(row['image'], neighbour['image'])
  assert batches.counts()['substituted'] == 2
  for number in (7, 31):
    assert f'neighbour: scene {number} of seed 0: ' in caplog.text


def test_an_error_of_the_program_is_found(source, monkeypatch):
  """Fails for every record, so that the run stops with the first cause."""

  def fit(image, size, bucket, rng, flip):
    return image.crop(size, bucket)

  monkeypatch.setattr(transforms, 'fit', fit)
  with pytest.raises(ValueError) as caught:
    next(make(source))
  message = str(caught.value)
  assert '16 records in a row of bucket' in message
  assert re.search(r'scene \d+ .*transforms.py, line \d+: TypeError', message)
  assert isinstance(caught.value.__cause__.__cause__, TypeError)


def test_scores(source, tmp_path):
  with pytest.raises(ValueError, match='scene .* has no aesthetic_score'):
    next(make(source, aesthetic_score=True))
  Image.new('RGB', (40, 40)).save(tmp_path / 'a.png')
  (tmp_path / 'metadata.csv').write_text(
    'file_name,text,aesthetic_score\na.png,black,6\n'
  )
  folder = kinds.make_source('folder', {'path': tmp_path}, workers=0)
  batches = make(folder, aesthetic_score=True)
  _, batch = next(batches)
  batches.close()
  assert batch['aesthetic_score'].tolist() == [6.0] * 8


def test_fixed_conditions_are_those_of_all_rows(source):
  """Images and crops stay the same; only what the net is told does not."""
  plain = take(make(source), 4)
  fixed = {'original_size': (512, 640), 'crop_top_left': (0, 3)}
  for (bucket, batch), (_, changed) in zip(
    plain, take(make(source, **fixed), 4)
  ):
    assert (changed['original_size'] == (512, 640)).all()
    assert (changed['crop_top_left'] == (0, 3)).all()
    assert changed['original_size'].dtype == changed['crop_top_left'].dtype
    assert changed['crop_top_left'].dtype == np.int32
    kept = {name: batch[name] for name in ('original_size', 'crop_top_left')}
    assert_same((bucket, batch), (bucket, changed | kept))


def test_one_condition_may_be_fixed(source):
  (_, plain), (_, changed) = (
    take(make(source, **options), 1)[0]
    for options in ({}, {'crop_top_left': (0, 0)})
  )
  np.testing.assert_array_equal(
    changed['original_size'], plain['original_size']
  )
  assert not changed['crop_top_left'].any() and plain['crop_top_left'].any()


def test_fixed_conditions_of_a_config():
  config = tiny_config.get_config()
  assert dataset.options_of(config).original_size is None
  config.unlock()
  config.data.fixed_original_size = (64, 48)
  config.data.fixed_crop_top_left = (0, 0)
  options = dataset.options_of(config)
  assert options.original_size == (64, 48)
  assert options.crop_top_left == (0, 0)
