"""Tests that size and crop conditions are true after resize, crop, flip."""

import numpy as np
import pytest

from sdxl_jax.data import images, transforms


def example(h, w, **more):
  """Makes an image of its coordinates: red = x / w, green = y / h."""
  y, x = (np.indices((h, w)) + 0.5) / np.array([h, w]).reshape(2, 1, 1)
  image = np.stack([x, y, 0 * x], -1) * 255
  return {
    'image': np.rint(image).astype(np.uint8),
    'caption': 'a ramp',
    'original_size': (h, w),
    'name': f'{h}x{w}',
  } | more


def test_cover():
  assert transforms.cover((100, 200), (50, 50)) == (50, 100)
  assert transforms.cover((30, 20), (64, 64)) == (96, 64)
  assert transforms.cover((333, 500), (64, 96)) == (64, 96)
  rng = np.random.default_rng(0)
  for size, bucket in rng.integers(16, 500, (500, 2, 2)):
    resized = transforms.cover(size, bucket)
    assert min(r - b for r, b in zip(resized, bucket)) == 0
    assert all(r >= b for r, b in zip(resized, bucket))


@pytest.mark.parametrize('flip', [0.0, 1.0])
@pytest.mark.parametrize(
  'size, bucket',
  [
    ((90, 240), (64, 64)),
    ((240, 90), (64, 64)),
    ((100, 140), (48, 96)),
    ((40, 50), (96, 64)),
    ((64, 96), (64, 96)),
  ],
)
def test_conditions_are_true(size, bucket, flip):
  crops = set()
  for seed in range(12):
    row = transforms.transform(
      example(*size), bucket, [seed], flip_probability=flip
    )
    assert row['original_size'].tolist() == list(size)
    assert row['target_size'].tolist() == list(bucket)
    assert row['image'].shape == (*bucket, 3)
    assert row['image'].dtype == np.float32
    resized = transforms.cover(size, bucket)
    top, left = row['crop_top_left']
    crops.add((int(top), int(left)))
    ramp = (row['image'] + 1) / 2
    x = (np.arange(bucket[1]) + left + 0.5) / resized[1]
    y = (np.arange(bucket[0]) + top + 0.5) / resized[0]
    inside = slice(4, -4)  # a resize bends the ramp at its ends
    x = 1 - x if flip else x
    assert abs(ramp[:, :, 0] - x)[:, inside].max() < 0.012
    assert abs(ramp[:, :, 1] - y[:, None])[inside].max() < 0.012
  choices = max(r - b for r, b in zip(transforms.cover(size, bucket), bucket))
  assert len(crops) > min(choices, 5) / 2


def test_crops_reach_both_ends():
  lefts = [
    transforms.random_crop((8, 12), (8, 8), np.random.default_rng(i))
    for i in range(100)
  ]
  assert set(lefts) == {(0, i) for i in range(5)}


def test_flippable_is_respected():
  for seed in range(5):
    rows = [
      transforms.transform(
        example(40, 40, **more), (32, 32), [seed], flip_probability=1.0
      )
      for more in ({}, {'flippable': False})
    ]
    assert rows[0]['image'][0, 0, 0] > 0.9 and rows[1]['image'][0, 0, 0] < -0.9


def test_flip_and_dropout_rates():
  flips = drops = 0
  for seed in range(400):
    row = transforms.transform(
      example(16, 16), (16, 16), [seed], False, 0.5, 0.25
    )
    flips += row['image'][0, 0, 0] > 0
    drops += row['caption'] == ''
  assert 160 < flips < 240 and 65 < drops < 135


def test_only_the_seed_decides():
  rows = [
    transforms.transform(example(60, 99), (32, 32), [1, 2, 3], False, 0.5, 0.5)
    for _ in range(2)
  ]
  for key in rows[0]:
    np.testing.assert_array_equal(rows[0][key], rows[1][key])


def test_aesthetic_score():
  scored = example(16, 16, aesthetic_score=6.5)
  row = transforms.transform(scored, (16, 16), [0], aesthetic_score=True)
  assert row['aesthetic_score'] == np.float32(6.5)
  with pytest.raises(ValueError, match='16x16 has no aesthetic_score'):
    transforms.transform(example(16, 16), (16, 16), [0], aesthetic_score=True)


def test_broken_bytes():
  with pytest.raises(images.UnreadableImage, match='16x16'):
    transforms.transform(example(16, 16, image=b'no'), (16, 16), [0])
