"""Tests which steps of a start are recorded."""

import jax
import jax.numpy as jnp
import pytest

from sdxl_jax.planning import profiler_trace
from sdxl_jax.training import step_profile

ALL = step_profile.BEFORE + step_profile.RECORDED


def follow(steps, folder):
  """The lines of a start of so many steps."""
  lines = []
  recorder = step_profile.Recorder(folder, lines.append)
  take = jax.jit(lambda x: jnp.tanh(x @ x))
  state = jnp.eye(8)
  for _ in range(steps):
    recorder.before_step(state)
    state = take(state)
  recorder.close(state)
  return lines


@pytest.mark.parametrize('steps', [ALL - 1, ALL, ALL + 3])
def test_steps_that_are_recorded(steps, tmp_path):
  (line,) = follow(steps, str(tmp_path))
  count = min(steps, ALL) - step_profile.BEFORE
  assert line.startswith(f'recorded {count} steps')
  assert f'sdxl_jax.plan --from_trace {tmp_path}' in line
  (timed,) = profiler_trace.read(tmp_path).programs
  assert timed.runs == count


def test_a_start_of_too_few_steps(tmp_path):
  (line,) = follow(step_profile.BEFORE, str(tmp_path))
  assert line.startswith('warning: nothing is recorded')
  assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_recorded():
  assert follow(ALL + 1, None) == []
