"""Lines on metrics that leave their usual range, and none on usual ones."""

import json

import numpy as np
import pytest

from sdxl_jax.training import usual_range


def lines_of(rows, path=None):
  """Returns what is said of some lines of metrics."""
  said = []
  watch = usual_range.UsualRange(said.append, path)
  for step, row in enumerate(rows, 1):
    watch.follow(step, row)
  return said


def usual(count, seed=0):
  """A run like any other: a falling noisy loss, a heavy-tailed gradient."""
  rng = np.random.default_rng(seed)
  steps = np.arange(count)
  return [
    {
      'loss': float(loss),
      'grad_norm': float(norm),
      'ema_distance': float(distance),
    }
    for loss, norm, distance in zip(
      (0.2 + np.exp(-steps / 20)) * rng.lognormal(0, 0.1, count),
      0.1 * rng.lognormal(0, 0.4, count),
      # Of a warm-up of ten lines, then of a cosine.
      1e-3 * np.minimum(1, (1 + steps) / 10) * (1.01 - steps / count),
    )
  ]


@pytest.mark.parametrize('seed', range(20))
def test_no_false_alarm(seed):
  assert lines_of(usual(400, seed)) == []


@pytest.mark.parametrize('name, factor', usual_range.FACTORS.items())
def test_a_jump_is_named_once(name, factor):
  rows = usual(60)
  for row in rows[40:43]:  # three lines long
    row[name] *= 10 * factor
  said = lines_of(rows)
  assert len(said) == 1
  assert f'warning: {name} is ' in said[0] and 'at step 41, above' in said[0]
  assert '--from_step goes back' in said[0]
  # After it came back, another one is named again.
  rows[50][name] *= 10 * factor
  assert len(lines_of(rows)) == 2


def test_little_is_said_of_few_lines_or_of_zeros():
  rows = usual(usual_range.LEAST)
  rows[-1]['loss'] *= 100
  assert lines_of(rows) == []  # the tenth line has nine before it
  assert lines_of([{'loss': 0.0, 'ema_distance': 0.0}] * 50) == []
  constant = [{'loss': 1.0}] * 20
  assert lines_of([*constant, {'loss': 1.4}]) == []  # within the factor
  assert len(lines_of([*constant, {'loss': 1.6}])) == 1


def test_a_resumed_run_knows_its_earlier_lines(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert lines_of([{'loss': 5.0}], path) == []
  path.write_text(''.join(json.dumps(row) + '\n' for row in usual(40)))
  assert len(lines_of([{'loss': 5.0}], path)) == 1
