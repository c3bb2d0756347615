"""The search for the fastest settings, on a machine whose costs are made up."""

import types

import pytest

from sdxl_jax.planning import batch_search, training_plan
from tests.support import tiny_config

FASTER = {'none': 1.0, 'dots': 1.2, 'full': 1.5}  # s per image
LARGER = {'none': 4, 'dots': 2, 'full': 1}  # memory per image, of 16


class Planner:
  """Costs in proportion to the batch; written out, a fifth faster."""

  gain = 0.2

  def __init__(self, config, name):
    self.config, self.machine = config, types.SimpleNamespace()
    self.machine.chip = types.SimpleNamespace(memory=16)
    shape = {'data': 1, 'fsdp': 1, 'tensor': 1}
    self.mesh = types.SimpleNamespace(shape=shape)

  def gradients(self, bucket, options):
    assert options == training_plan.QUICK
    unet, rows = self.config.unet, self.config.global_batch_size
    is_written_out = unet.scan_unroll > 1
    memory = rows * LARGER[unet.remat]
    seconds = rows * FASTER[unet.remat] + 0.5
    return training_plan.BucketCost(
      '16x16',
      rows,
      memory,
      memory <= 16,
      1.0,
      1.0,
      {},
      seconds * (1 - self.gain * is_written_out),
      None,
      50.0 if is_written_out else 10.0,
    )


@pytest.fixture
def config(monkeypatch):
  monkeypatch.setattr(training_plan, 'Planner', Planner)
  config = tiny_config.get_config()
  with config.unlocked():
    config.unet.transformer_depth = (0, 3)
    config.unet.scan_blocks = True
    config.accumulation_steps = config.buckets_per_step = 1
    config.data.buckets = ((16, 16), (16, 24))
  return config


def test_the_fastest_that_fits(config):
  lines = []
  best = batch_search.search(config, 'made up', (16, 16), lines.append)
  assert best.fields == {'unet.remat': 'none', 'global_batch_size': 4}
  assert best.cost.memory == 16 and best.seconds_per_image == 4.5 / 4
  # Each rematerialisation is doubled until it no longer fits.
  assert len(lines) == 4 + 5 + 6


def test_long_runs_are_written_out(config):
  best = batch_search.search(config, 'made up', (16, 16), lambda line: None)
  found = batch_search.unroll(config, 'made up', (16, 16), best)
  assert found.fields == best.fields | {'unet.scan_unroll': 3}
  assert found.saved == pytest.approx(0.2 * 4.5)
  # Two buckets, each 40 s longer with a fifth of the work.
  assert found.compiling == pytest.approx(2 * 40 * 5)
  assert found.steps == pytest.approx(400 / 0.9)
  assert 'not worth it for the 400 ' in batch_search.describe(found, 400)
  assert ', so worth it for the 500 ' in batch_search.describe(found, 500)


def test_every_micro_batch_of_a_step_saves(config):
  with config.unlocked():
    config.accumulation_steps = 2
  best = batch_search.search(config, 'made up', (16, 16), lambda line: None)
  found = batch_search.unroll(config, 'made up', (16, 16), best)
  once = best.cost.seconds - found.cost.seconds
  assert found.saved == pytest.approx(2 * once) and once > 0


def test_what_saves_nothing(config, monkeypatch):
  best = batch_search.search(config, 'made up', (16, 16), lambda line: None)
  monkeypatch.setattr(Planner, 'gain', -0.1)
  found = batch_search.unroll(config, 'made up', (16, 16), best)
  assert batch_search.describe(found, 10**9).endswith('no faster than the loop')


def test_what_cannot_be_written_out(config):
  best = batch_search.Candidate({'global_batch_size': 32}, None)
  assert batch_search.unroll(config, 'made up', (16, 16), best) is None
  with config.unlocked():
    config.unet.scan_blocks = False
  best = batch_search.search(config, 'made up', (16, 16), lambda line: None)
  assert batch_search.unroll(config, 'made up', (16, 16), best) is None
  assert 'no loop to replace' in batch_search.describe(None, 100)


def test_it_needs_a_machine():
  with pytest.raises(ValueError, match="memory of .* that of 'here'"):
    batch_search.search(tiny_config.get_config(), 'here', (16, 16), print)
