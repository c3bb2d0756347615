"""Seeds as users give them: 64 bits, -1, and what is no seed."""

import numpy as np
import pytest

from sdxl_jax.sampling import image_seeds

LARGEST = 2**64 - 1


@pytest.mark.parametrize(
  'seed', [0, 1, LARGEST, -1, np.int64(7), np.uint64(LARGEST), np.int8(-1)]
)
def test_whole_numbers_of_any_library(seed):
  found = image_seeds.check(seed)
  assert type(found) is int and found == int(seed)


@pytest.mark.parametrize(
  'seed', [-2, 2**64, 1.5, 1.0, True, np.True_, '7', None, np.float32(1), [1]]
)
def test_what_is_no_seed(seed):
  with pytest.raises(ValueError, match='from 0 to 18446744073709551615'):
    image_seeds.check(seed)
  with pytest.raises(ValueError, match=r'seeds\[1\] is '):
    image_seeds.choose([0, seed], 2)


def test_minus_one_draws_and_the_drawn_seeds_are_shown():
  assert image_seeds.choose(None, 3) == [0, 1, 2]
  with pytest.warns(image_seeds.DrawnSeedWarning) as warned:
    first = image_seeds.choose([-1, 5, -1], 3)
  assert str(first) in str(warned[0].message)
  assert first[1] == 5 and min(first) >= 0 and first[0] != first[2]


def test_repeated_images_count_up_to_the_largest_seed():
  assert image_seeds.repeat(3, 3) == [3, 4, 5]
  assert image_seeds.repeat(LARGEST - 1, 2) == [LARGEST - 1, LARGEST]
  with pytest.raises(ValueError, match='image 3 of --repeat=3 would have the'):
    image_seeds.repeat(LARGEST - 1, 3)
  drawn = image_seeds.repeat(-1, 3)
  assert drawn == [drawn[0] + i for i in range(3)] and drawn[0] >= 0
  others = {image_seeds.repeat(-1, 1)[0] for _ in range(4)}
  assert len(others) > 1


def test_few_of_many_drawn_seeds_are_printed():
  assert image_seeds.describe_drawn([4, 5]) == 'seed -1: drew 4, 5'
  assert image_seeds.describe_drawn(range(10)).endswith('7 and 2 more')
