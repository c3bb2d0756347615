"""Which steps one program takes at once."""

import numpy as np

from sdxl_jax.sampling import step_segments

ALL = np.ones(10, bool)


def stretches(stages, guided, stride):
  found = step_segments.stretches(stages, guided, 2, 10, stride)
  return [(s.start, s.stop, s.conditioning, s.guided) for s in found]


def test_changes_of_the_text_and_reports():
  found = stretches([(0, 'a'), (3, 'b'), (6, 'c')], ALL, 4)
  assert [s[:3] for s in found] == [(2, 3, 'a'), (3, 6, 'b'), (6, 10, 'c')]
  found = stretches([(0, 'a')], ALL, 3)
  assert [s[:3] for s in found] == [(2, 5, 'a'), (5, 8, 'a'), (8, 10, 'a')]
  (found,) = stretches([(0, 'a'), (12, 'b')], ALL, 8)
  assert found == (2, 10, 'a', True)


def test_guidance_begins_and_ends():
  guided = np.isin(np.arange(10), (1, 4, 5, 6))
  found = stretches([(0, 'a'), (5, 'b')], guided, 8)
  assert found == [
    (2, 4, 'a', False),
    (4, 5, 'a', True),
    (5, 7, 'b', True),
    (7, 10, 'b', False),
  ]
  assert stretches([(0, 'a')], ~ALL, 8) == [(2, 10, 'a', False)]


def test_steps_by_the_noise_level_that_they_begin_at():
  """Above the lower end and up to the higher one, as in the paper."""
  sigmas = np.float32([4096, 8, 4, 2, 1, 0])

  def guided(interval):
    return step_segments.guided_steps(sigmas, interval).tolist()

  assert guided(None) == [True] * 5 == guided((0, 1e300))
  assert guided((1, 8)) == [False, True, True, True, False]
  assert guided((3, 7.9)) == [False, False, True, False, False]
  assert not any(guided((2.1, 3.9)))
