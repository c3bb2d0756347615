"""Learning rate schedules by name, against diffusers' and transformers'."""

import math

import numpy as np
import pytest

from sdxl_jax.training import rate_schedules


def test_learning_rate():
  constant = rate_schedules.make(1e-3, 10, 110)
  assert [float(constant(s)) for s in (0, 5, 10, 999)] == pytest.approx(
    [0, 5e-4, 1e-3, 1e-3]
  )
  cosine = rate_schedules.make(1e-3, 10, 110, rate_schedules.Shape('cosine'))
  assert [float(cosine(s)) for s in (10, 60, 110)] == pytest.approx(
    [1e-3, 5e-4, 0], abs=1e-9
  )


@pytest.mark.parametrize('name', rate_schedules.NAMES)
def test_no_warmup(name):
  """0 steps of warm-up: the first step has the full learning rate."""
  shape = rate_schedules.Shape(name, decay_steps=20)
  schedule = rate_schedules.make(1e-3, 0, 100, shape)
  assert float(schedule(0)) == pytest.approx(1e-3)


def expected(name, step, warmup, total, cycles, power, decay, least):
  """The factor of a step as the two libraries' documentation has it."""
  if step < warmup:
    return step / warmup
  progress = min((step - warmup) / (total - warmup), 1)
  if name == 'constant':
    return 1
  if name == 'linear':
    factor = 1 - progress
  elif name == 'cosine':
    factor = (1 + math.cos(math.pi * progress)) / 2
  elif name == 'cosine_with_restarts':
    factor = (1 + math.cos(math.pi * (cycles * progress % 1))) / 2
    factor = factor if progress < 1 else 0
  elif name == 'polynomial':
    factor = (1 - progress) ** power
  else:
    late = max(0, step - (total - decay)) / decay
    factor = (1 + math.cos(math.pi * min(late, 1))) / 2
  return least + (1 - least) * factor


@pytest.mark.parametrize('least', [0.0, 0.1])
@pytest.mark.parametrize('name', rate_schedules.NAMES)
def test_every_schedule(name, least):
  shape = rate_schedules.Shape(name, 3, 2.0, 25, least)
  schedule = rate_schedules.make(1e-3, 10, 100, shape)
  steps = np.arange(120)
  ours = np.broadcast_to(schedule(steps), steps.shape)
  reference = [expected(name, s, 10, 100, 3, 2.0, 25, least) for s in steps]
  np.testing.assert_allclose(ours, 1e-3 * np.array(reference), atol=2e-9)
