"""Tests bucket assignment and the guarantees of the schedule."""

import collections

import numpy as np
import pytest

from configs import stage3
from sdxl_jax.data import buckets, seeds

FIVE = ((28, 56), (32, 48), (40, 40), (48, 32), (56, 28))


@pytest.fixture(scope='module')
def sizes():
  """Makes a skewed distribution: most square, few wide, three tall."""
  rng = np.random.default_rng(0)
  aspects = np.repeat([1.0, 1.4, 0.7, 0.5, 2.1], [700, 210, 67, 41, 3])
  aspects = rng.permutation(aspects) * rng.uniform(0.95, 1.05, len(aspects))
  side = rng.uniform(20, 120, len(aspects))
  return np.stack([side * aspects**0.5, side / aspects**0.5], 1).astype(int)


def test_the_table_of_the_paper():
  assert len(set(stage3.BUCKETS)) == 40
  area = np.prod(stage3.BUCKETS, axis=1) / 1024**2
  assert 0.87 < area.min() and area.max() <= 1.01
  assert all(n % 64 == 0 for bucket in stage3.BUCKETS for n in bucket)
  assert (704, 1344) in stage3.BUCKETS and (1344, 704) not in stage3.BUCKETS


def test_assign_is_nearest_in_log_aspect():
  rng = np.random.default_rng(0)
  sizes = rng.integers(64, 4096, (500, 2))
  nearest = buckets.assign(sizes, stage3.BUCKETS, chunk=77)
  log = np.log([h / w for h, w in stage3.BUCKETS])
  distance = abs(np.log(sizes[:, :1] / sizes[:, 1:]) - log)
  np.testing.assert_array_equal(
    distance[np.arange(500), nearest], distance.min(1)
  )


@pytest.mark.parametrize('table', [(), ((32, 64), (16, 32))])
def test_assign_refuses(table):
  with pytest.raises(ValueError, match='at least one is needed'):
    buckets.assign(np.ones((3, 2)), table)


@pytest.mark.parametrize('n', [1, 2, 3, 7, 10, 100, 1000, 4097])
def test_permute_is_a_permutation(n):
  image = buckets.permute(np.arange(n), n, [1, 2, 3])
  np.testing.assert_array_equal(np.sort(image), np.arange(n))


def test_permute_is_uniform():
  n, trials = 11, 1500
  images = [buckets.permute(np.arange(n), n, [5, t]) for t in range(trials)]
  for i in range(n):
    counts = np.bincount(np.array(images)[:, i], minlength=n)
    chi2 = ((counts - trials / n) ** 2 / (trials / n)).sum()
    assert chi2 < 35  # 10 degrees of freedom: p = 1e-4
  # Neighbours do not stay together.
  gap = np.diff(buckets.permute(np.arange(10000), 10000, [0]))
  assert abs(np.mean(abs(gap)) / 3333 - 1) < 0.1


def stream(schedule, steps):
  """Returns the records of each bucket in order, and the buckets in order."""
  rows, order = collections.defaultdict(list), []
  for step in range(steps):
    bucket, ids = schedule[step]
    assert ids.dtype == np.int64
    rows[bucket].extend(ids.tolist())
    order.append(bucket)
  return rows, order


@pytest.mark.parametrize('batch', [1, 8, 64, 2000])
def test_each_record_once_per_pass(sizes, batch):
  schedule = buckets.Schedule(sizes, FIVE, seed=3, global_batch_size=batch)
  rows, _ = stream(schedule, 3 * len(sizes) // batch + 10)
  assigned = buckets.assign(sizes, FIVE)
  for b, bucket in enumerate(FIVE):
    members = np.flatnonzero(assigned == b)
    ids = rows[bucket]
    assert set(ids) <= set(members)
    passes = [
      tuple(ids[i : i + len(members)])
      for i in range(0, len(ids) - len(members) + 1, len(members))
    ]
    for one in passes:
      assert sorted(one) == members.tolist()
    if len(members) > 40 and len(passes) > 1:
      assert passes[0] != passes[1]
  if batch < 2000:
    assert len(rows[FIVE[2]]) >= 2 * (assigned == 2).sum()


def test_buckets_come_in_proportion_and_mixed(sizes):
  schedule = buckets.Schedule(sizes, FIVE, seed=0, global_batch_size=16)
  steps = 1500
  _, order = stream(schedule, steps)
  share = np.bincount(buckets.assign(sizes, FIVE)) / len(sizes)
  for b, bucket in enumerate(FIVE):
    assert abs(order.count(bucket) / steps - share[b]) < 0.02
  changes = np.mean([a != b for a, b in zip(order, order[1:])])
  assert abs(changes - (1 - (share**2).sum())) < 0.05


def test_random_access(sizes):
  one = buckets.Schedule(sizes, FIVE, seed=1, global_batch_size=32)
  two = buckets.Schedule(sizes, list(map(list, FIVE)), 1, 32)
  for step in (10**6, 5, 31, 32, 0, 10**9):
    assert one[step][0] == two[step][0]
    np.testing.assert_array_equal(one[step][1], two[step][1])
  assert one.fingerprint() == two.fingerprint()
  assert buckets.Schedule(sizes, FIVE, 2, 32).fingerprint() != one.fingerprint()
  # A batch of a rare bucket spans several passes.
  for step in range(3000):
    bucket, _, passes = one.records(step)
    if bucket == (56, 28):
      assert len(set(passes)) > 10
      break
  else:
    raise AssertionError('three records never came')


def test_first_use(sizes):
  schedule = buckets.Schedule(sizes, FIVE, seed=0, global_batch_size=8)
  _, order = stream(schedule, 600)
  assert schedule.first_use() == list(dict.fromkeys(order))
  later = schedule.begin(buckets.Origin(5, schedule.taken(5)), 24)
  order = [later[5 + step][0] for step in range(300)]
  assert later.first_use() == list(dict.fromkeys(order))


@pytest.mark.parametrize('sizes_of_batches', [(8, 24, 5), (64, 1, 700)])
def test_batches_of_other_sizes_go_on_from_the_records(sizes, sizes_of_batches):
  """Three sizes in a run; each pass has every record once nevertheless."""
  first, second, third = sizes_of_batches
  schedule = buckets.Schedule(sizes, FIVE, 3, first)
  rows, step = collections.defaultdict(list), 0

  def take(schedule, steps):
    for i in range(step, step + steps):
      bucket, ids, _ = schedule.records(i)
      assert len(ids) == schedule.global_batch_size
      rows[bucket].extend(ids.tolist())
    taken = schedule.taken(step + steps)
    assert taken == tuple(len(rows[bucket]) for bucket in FIVE)
    return step + steps

  step = take(schedule, 300 // first)
  for size, records in ((second, 900), (third, 2500)):
    origin = buckets.Origin(step, schedule.taken(step))
    schedule = schedule.begin(origin, size)
    step = take(schedule, -(-records // size))
  with pytest.raises(ValueError, match='begins with step'):
    schedule[origin.step - 1]
  # The stream of a bucket is the same whatever its batches.
  straight, _ = stream(buckets.Schedule(sizes, FIVE, 3, first), 6000 // first)
  for bucket in FIVE:
    n = min(len(rows[bucket]), len(straight[bucket]))
    assert rows[bucket][:n] == straight[bucket][:n]
  # The shares of the buckets stay those of the records.
  seen = np.array([len(rows[bucket]) for bucket in FIVE])
  assert (abs(seen / seen.sum() - schedule.counts / len(sizes)) < 0.2).all()


def test_streams_of_a_seed_never_change():
  """Their numbers decide the orders and crops of every run."""
  assert {stream.name: stream.value for stream in seeds.Stream} == {
    'BUCKET_ORDER': 0,
    'RECORD_ORDER': 1,
    'TRANSFORM': 2,
    'PRECOMPUTED_CROP': 3,
    'EVALUATION_CROP': 4,
    'CAPTION': 5,
    'TEMPLATE': 6,
    'VALIDATION': 7,
  }
  schedule = buckets.Schedule(np.array([[40, 40], [28, 56]] * 9), FIVE, 3, 4)
  steps = [schedule[step] for step in range(4)]
  assert [(bucket, ids.tolist()) for bucket, ids in steps] == [
    ((28, 56), [9, 15, 13, 17]),
    ((28, 56), [5, 3, 11, 7]),
    ((40, 40), [2, 8, 10, 0]),
    ((40, 40), [14, 12, 16, 4]),
  ]


def test_next_in_bucket_is_a_circle(sizes):
  schedule = buckets.Schedule(sizes, FIVE, seed=0, global_batch_size=8)
  assigned = buckets.assign(sizes, FIVE)
  for b in range(5):
    members = np.flatnonzero(assigned == b).tolist()
    following = [schedule.next_in_bucket(i) for i in members]
    assert following == members[1:] + members[:1]


def test_refuses_nothing_to_schedule():
  with pytest.raises(ValueError, match='0 records'):
    buckets.Schedule(np.empty((0, 2)), FIVE, 0, 8)
