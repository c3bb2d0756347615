"""plan, on the devices of this machine and on made-up chips."""

import dataclasses
import json
import subprocess
import sys

import pytest

from configs import stage3
from sdxl_jax import plan
from sdxl_jax.planning import machines, topology, training_plan
from tests.support import tiny_config


@pytest.fixture(scope='module')
def made():
  config = tiny_config.get_config()
  config.mesh.data, config.mesh.fsdp = 1, -1
  return plan.plan(config, 'here', 'all')


def test_plan(made, tmp_path):
  plans, update, planner = made
  assert [p.bucket for p in plans] == ['16x16', '16x24']
  square, wide = plans
  assert square.batch == wide.batch == 1  # of 4, on 4 devices
  assert wide.model_flops > square.model_flops > 0
  assert wide.flops >= wide.model_flops
  assert square.collectives['all-gather'] > 0
  state = machines.bytes_of(planner.state)
  assert state < square.memory <= wide.memory
  assert update > state
  text = plan.report(plans, update, planner)
  assert '4 x cpu, no limit known; mesh data=1, fsdp=4, tensor=1' in text
  plan.write_json(tmp_path / 'plan.json', plans, update, planner)
  saved = json.loads((tmp_path / 'plan.json').read_text())
  assert saved['buckets'][1]['memory'] == wide.memory
  assert saved['mesh'] == {'data': 1, 'fsdp': 4, 'tensor': 1}


@pytest.mark.parametrize(
  'fields, advice',
  [
    ({'unet.remat': 'none'}, '--config.unet.remat=dots'),
    ({'unet.remat': 'dots'}, '--config.unet.remat=full'),
    (
      {'unet.remat': 'full', 'global_batch_size': 8},
      '--config.accumulation_steps=2',
    ),
    ({'unet.remat': 'full'}, 'Take more devices'),
  ],
)
def test_what_does_not_fit(made, fields, advice):
  plans, update, planner = made
  small = dataclasses.replace(
    planner.machine.chip, memory=int(1.02 * plans[1].memory)
  )
  planner = Smaller(
    planner, small, training_plan.changed(planner.config, fields)
  )
  text = plan.verdict(plans, update, planner)
  assert 'It does not fit: 16x24 takes 98% of the memory of a device' in text
  assert advice in text


class Smaller(training_plan.Planner):
  """A Planner that has compiled already, with another chip."""

  def __init__(self, planner, chip, config):
    machine = dataclasses.replace(planner.machine, chip=chip)
    self.__dict__ |= vars(planner) | {'machine': machine, 'config': config}


def test_verdict_when_it_fits(made):
  plans, update, planner = made
  chip = dataclasses.replace(planner.machine.chip, memory=2 * plans[1].memory)
  text = plan.verdict(plans, update, Smaller(planner, chip, planner.config))
  assert text == 'It fits: 16x24 takes 50% of the memory of a device.'


def test_verdict_where_the_update_takes_most(made):
  plans, update, planner = made
  chip = dataclasses.replace(planner.machine.chip, memory=4 * update)
  text = plan.verdict(plans, 2 * update, Smaller(planner, chip, planner.config))
  assert text.startswith('It fits: the update takes 50%')


def test_search_needs_a_machine(made):
  with pytest.raises(ValueError, match="memory of .* that of 'here'"):
    plan.search(made[2].config, 'here', (16, 16), print)


def test_choose_buckets():
  config = stage3.get_config()
  choose = lambda choice: plan.choose_buckets(config, choice)
  assert choose('extremes') == [(1024, 1024), (512, 2048), (2048, 512)]
  assert len(choose('all')) == 40
  assert choose('640x1536,1024x1024') == [(640, 1536), (1024, 1024)]
  with pytest.raises(ValueError, match='has 64x64, which .*buckets lacks'):
    choose('64x64')


def test_command_says_what_it_does_not_know():
  run = subprocess.run(
    [sys.executable, '-m', 'sdxl_jax.plan', '--topology', 'v5z:2x2']
    + ['--config', 'configs/stage3.py'],
    capture_output=True,
    text=True,
  )
  assert run.returncode == 1
  assert "error: no topology is named 'v5z:2x2'" in run.stderr
  assert 'Traceback' not in run.stderr


def test_here_is_a_topology():
  devices, chip = topology.make_devices('here')
  assert len(devices) == 4 and chip.memory is None
