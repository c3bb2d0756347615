"""A second start compiles nothing: all programs of the first one are kept."""

import pytest

from tests.support import counted_programs, golden_sets

TINY = golden_sets.SETS[0] / 'tiny'
SMALL = '--height=64', '--width=64', '--steps=3'


@pytest.mark.slow
def test_sample_after_a_warm_up(tmp_path):
  """Not even for another prompt, seed and guidance scale."""
  command = tmp_path / 'programs', 'sdxl_jax.sample'
  weights = '--weights', TINY / 'base'
  warm = counted_programs.run(*command, *weights, *SMALL, '--warm_up', seed=1)
  assert warm.returncode == 0, warm.stderr
  assert warm.compiled.count('jit(denoise_steps)') == 1
  assert f'{tmp_path / "programs"} has the programs of 1 batch' in warm.stdout
  start = counted_programs.run(
    *(*command, *weights, *SMALL, '--prompt=a pig', '--seed=5'),
    *('--guidance_scale=3', '--output', tmp_path / 'pig.png'),
    seed=2,
  )
  assert start.returncode == 0, start.stderr
  assert not start.compiled
  assert f'({len(start.read)} programs, {len(start.read)} from' in start.stdout
  assert (tmp_path / 'pig.png').is_file()
  assert [p.name for p in tmp_path.iterdir() if p.suffix == '.png'] == [
    'pig.png'
  ]


@pytest.mark.slow
def test_train_and_its_restart(tmp_path):
  """A run that goes on from a checkpoint compiles nothing."""

  def train(*args, seed):
    done = counted_programs.run(
      *(tmp_path / 'programs', 'sdxl_jax.train', '--workdir', tmp_path / 'run'),
      *('--config', 'tests/support/tiny_config.py', '--config.total_steps=2'),
      *('--config.checkpoint.every=1', *args),
      seed=seed,
    )
    assert done.returncode == 0, done.stderr
    return done

  first = train(seed=1)
  assert {'jit(gradients)', 'jit(update)'} <= {*first.compiled}
  again = train('--from_step=1', seed=2)
  assert {'jit(gradients)', 'jit(update)'} <= {*again.read}
  assert not again.compiled
  assert 'step 2 of 2' in again.stdout and 'step 1 of 2' not in again.stdout
  assert 'read the update in' in again.stdout
