"""The plan of the recipe: chips that a batch fills, days, limits."""

import types

import pytest

from configs import stage1
from sdxl_jax.planning import (
  chips,
  machines,
  recipe_plan,
  recipe_report,
  topology,
  training_plan,
)
from tests.support import tiny_config


def test_the_parts_of_a_machine():
  parts = topology.parts('v5p:8x8x8')
  assert parts[512] == 'v5p:8x8x8' and parts[64] == 'v5p:4x4x4'
  assert parts[4] == 'v5p:2x2x1' and parts[256] == 'v5p:4x8x8'
  assert max(topology.parts('v5p:8x8x16')) == 1024
  assert topology.parts('v5e:4x4') == {
    1: 'v5e:1x1',
    4: 'v5e:2x2',
    8: 'v5e:2x4',
    16: 'v5e:4x4',
  }
  nodes = topology.parts('h100x8x32')
  assert nodes[8] == 'h100x8' and nodes[64] == 'h100x8x8'
  assert 12 not in nodes and max(nodes) == 256
  with pytest.raises(ValueError, match='no topology is named'):
    topology.parts('v9:1x1')
  for name in ('v5p:3x3x3', 'v5p:4x4', 'v5e:3x3'):
    with pytest.raises(ValueError, match='is not a slice'):
      topology.parts(name)


@pytest.mark.parametrize(
  'name, batch, expected',
  [
    ('v5p:8x8x8', 64, 'v5p:4x4x4'),
    ('v5p:8x8x8', 2048, 'v5p:8x8x8'),
    ('v5p:4x4x12', 64, 'v5p:4x4x4'),  # 192 do not divide 64
    ('h100x8x32', 64, 'h100x8x8'),
    ('v5e:16x16', 256, 'v5e:16x16'),
  ],
)
def test_a_batch_is_shared_evenly(name, batch, expected):
  found, chips = recipe_plan.share_of(name, batch)
  assert found == expected and topology.parts(name)[chips] == found


def test_a_batch_that_no_part_shares():
  with pytest.raises(ValueError, match='of 3 images .* by 4, 8 chips of v5p'):
    recipe_plan.share_of('v5p:2x2x2', 3)


def test_choices_save_more_and_more():
  config = stage1.get_config()
  config.global_batch_size = 8
  found = list(recipe_plan.choices(config, 'unet.remat', 1))
  assert [f['unet.remat'] for f in found[:3]] == ['none', 'dots', 'full']
  assert [f['accumulation_steps'] for f in found[3:]] == [2, 4, 8]
  # Each of two chips needs an image of each micro-batch.
  found = list(recipe_plan.choices(config, 'unet.remat', 2))
  assert [f['accumulation_steps'] for f in found[3:]] == [2, 4]


@pytest.fixture(scope='module')
def stage():
  """A tiny stage, with the seconds of a chip whose speed is made up."""
  config = tiny_config.get_config()
  config.total_steps, config.mesh.data, config.mesh.fsdp = 1000, 1, -1
  planner = training_plan.Planner(config, 'here')
  gradients = training_plan.BucketCost(
    '16x16', 2, 10**9, True, 1e9, 1e9, {'all-gather': 4e9}, 3.0, 0.5, 1.0
  )
  chip = chips.Chip('made up', 2**34, 1e12, link=4e9)
  machine = types.SimpleNamespace(
    chip=chip, size=4, devices_of_a_host=2, platform='tpu'
  )
  planner.machine = machine
  update = training_plan.UpdateCost(2 * 10**9, 1.0)
  fields = {'unet.remat': 'dots'}
  return recipe_plan.StagePlan(
    'stage1', 'made:up', fields, planner, gradients, update
  )


def test_days(stage):
  config = stage.config
  micro = config.buckets_per_step * config.accumulation_steps
  assert stage.step_seconds == 3.0 * micro + 1.0
  assert stage.seconds == 1000 * stage.step_seconds
  assert stage.chip_hours == 4 * stage.seconds / 3600
  images = config.global_batch_size / stage.step_seconds
  assert stage.host_images_per_second == images / 2  # two hosts
  # Parameters, two moments and at least one average, in float32.
  parameters = machines.bytes_of(stage.planner.state.params)
  assert stage.checkpoint_bytes >= 4 * parameters


def test_what_limits_it(stage):
  limits = stage.most_chips
  # One second of three is transfer: as much as computing on 8 chips.
  assert limits == {'batch': stage.config.global_batch_size, 'links': 8.0}


def test_a_slow_pipeline_slows_it_down(stage):
  needed = stage.host_images_per_second
  assert stage.slowdown(None) == stage.slowdown(needed) == 1
  assert stage.slowdown(4 * needed) == 1
  assert stage.slowdown(needed / 4) == 4


def test_report(stage):
  needed = stage.host_images_per_second
  text = recipe_report.to_text([stage], needed / 4, 0.5)
  assert text.split()[:3] == ['stage', 'on', 'px']
  assert f'all: {stage.seconds / 86400:.1f} days' in text
  assert 'links 8; more are stopped by the batch first' in text
  assert f'so that it takes {4 * stage.seconds / 86400:.1f} days' in text
  seconds = stage.checkpoint_bytes / 1e9 / 0.5 / 2
  assert f'takes {seconds:.1f} s at 0.5 GB/s of each of 2 hosts' in text
  assert 'waits for data' not in recipe_report.to_text([stage], None, 0.5)
  figures = recipe_report.to_json([stage], None)['stage1']
  assert figures['chips'] == 4 and figures['peak'] == 2 * 10**9
  assert figures['most_chips']['links'] == 8.0


def test_speed_must_be_known():
  with pytest.raises(ValueError, match="speed of the devices, and that of 'he"):
    recipe_plan.plan('here', ['stage1'], print)
