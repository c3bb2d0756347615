"""Tests plan on the devices of this machine and on hypothetical chips."""

import copy
import dataclasses
import functools
import json
import subprocess
import sys

import pytest
from absl import flags

from configs import stage3
from sdxl_jax import plan
from sdxl_jax.planning import (
  machines,
  profile_output,
  topology,
  training_plan,
  training_report,
)
from sdxl_jax.programs import program_cache
from tests.support import commands, tiny_config


@pytest.fixture(scope='module')
def planned():
  config = tiny_config.get_config()
  config.mesh.data, config.mesh.fsdp = 1, -1
  return plan.plan(config, 'here', 'all', profiled=True)


def test_profile(planned, tmp_path, capsys):
  arguments = ['--config=configs/stage3.py', '--topology=here']
  path = tmp_path / 'trace.json'
  with commands.parsed('sdxl_jax.plan', [*arguments, f'--trace={path}']):
    profile_output.show_training(flags.FLAGS, planned)
  text = capsys.readouterr().out
  assert 'profile of 16x16' in text and 'profile of the update' in text
  assert 'UNet up_blocks_0' in text and 'self-attention' in text
  assert 'optimizer, EMA' in text and '10 FLOPs per byte' in text
  events = json.loads(path.read_text())['traceEvents']
  assert {'16x16', 'the update', 'backward'} <= {e['name'] for e in events}
  # The same figures, of all buckets, under the keys of --json.
  figures = training_report.to_json(planned)
  for found in [b['profile'] for b in figures['buckets']] + [figures['update']]:
    for table in ('kinds', 'blocks', 'layers', 'modules'):
      shares = [row['share'] for row in found[table].values()]
      assert sum(shares) == pytest.approx(1)
  json.dumps(figures)
  # Gathers of the parameters are in it.
  assert figures['buckets'][0]['profile']['kinds']['collectives']['share'] > 0


def test_a_recorded_profile_needs_no_config(tmp_path, monkeypatch):
  monkeypatch.setattr(profile_output, 'show_recorded', lambda *given: given)
  path = tmp_path / 'recorded.json'
  arguments = ['--from_trace=DIR', f'--json={path}']
  with commands.parsed('sdxl_jax.plan', arguments) as start:
    start()
  assert json.loads(path.read_text()) == ['DIR', None]
  with pytest.raises(flags.Error, match='give --config and --topology'):
    with commands.parsed('sdxl_jax.plan', ['--config=configs/stage3.py']):
      pass


def test_plan(planned, tmp_path):
  assert [b.bucket for b in planned.buckets] == ['16x16', '16x24']
  square, wide = planned.buckets
  assert square.batch == wide.batch == 1  # of 4, on 4 devices
  assert wide.model_flops > square.model_flops > 0
  assert wide.flops >= wide.model_flops
  assert square.collectives['all-gather'] > 0
  state = machines.bytes_of(planned.planner.state)
  assert state < square.memory <= wide.memory
  assert planned.update.memory > state
  text = training_report.to_text(planned)
  assert '4 x cpu, no limit known; mesh data=1, fsdp=4, tensor=1' in text
  plan.save_json(tmp_path / 'plan.json', training_report.to_json(planned))
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
    ({'unet.remat': 'full', 'trained': ('lora',)}, 'unet.weights_dtype=int8'),
  ],
)
def test_what_does_not_fit(planned, fields, advice):
  memory = int(1.02 * planned.buckets[1].memory)
  text = training_report.verdict(with_memory(planned, memory, fields))
  assert 'It does not fit: 16x24 takes 98% of the memory of a device' in text
  assert advice in text


def with_memory(planned, memory, fields):
  """Returns the plan with another memory per chip and other config fields."""
  planner = copy.copy(planned.planner)
  chip = dataclasses.replace(planner.machine.chip, memory=memory)
  planner.machine = dataclasses.replace(planner.machine, chip=chip)
  planner.config = training_plan.changed(planner.config, fields)
  return dataclasses.replace(planned, planner=planner)


def test_verdict_when_it_fits(planned):
  memory = 2 * planned.buckets[1].memory
  text = training_report.verdict(with_memory(planned, memory, {}))
  assert text == 'It fits: 16x24 takes 50% of the memory of a device.'


def test_verdict_where_the_update_takes_most(planned):
  update = planned.update.memory
  larger = planned.update._replace(memory=2 * update)
  planned = dataclasses.replace(planned, update=larger)
  text = training_report.verdict(with_memory(planned, 4 * update, {}))
  assert text.startswith('It fits: the update takes 50%')


def test_what_devices_hold_beside_factors():
  """In 8 bits the kernels of frozen nets take less; a cache replaces nets."""
  config = tiny_config.get_config().unlock()
  target = dict(layers='unet/.*/to_q', rank=2, alpha=2.0)
  config.update(trained=('lora',), lora={'attention': target})

  def frozen(**fields):
    changed = training_plan.changed(config, fields)
    return training_plan.Planner(changed, 'here').frozen

  whole = frozen()
  assert set(whole) == {'unet', 'text_encoder', 'text_encoder_2'}
  stored = frozen(**{'unet.weights_dtype': 'int8'})
  assert stored['text_encoder'] == whole['text_encoder']
  sizes = [machines.bytes_of(nets['unet']) for nets in (stored, whole)]
  assert sizes[0] < 0.5 * sizes[1]
  assert set(frozen(**{'data.source': 'precomputed'})) == {'unet'}


def test_choose_buckets():
  config = stage3.get_config()
  choose = functools.partial(plan.choose_buckets, config)
  assert choose('extremes') == [(1024, 1024), (512, 2048), (2048, 512)]
  assert len(choose('all')) == 40
  assert choose('640x1536,1024x1024') == [(640, 1536), (1024, 1024)]
  with pytest.raises(ValueError, match='has 64x64, which .*buckets lacks'):
    choose('64x64')


@pytest.mark.parametrize(
  ('topology', 'kept'), [('here', True), ('t4x1', False)]
)
def test_programs_for_absent_devices_are_not_kept(topology, kept, monkeypatch):
  found = []
  arguments = ['--config=configs/stage3.py', f'--topology={topology}']
  monkeypatch.setattr(
    plan, 'print_plan', lambda args: found.append(program_cache.folder())
  )
  with commands.parsed('sdxl_jax.plan', arguments):
    plan.main(flags.FLAGS)
  assert [folder is not None for folder in found] == [kept]


def test_command_names_an_unknown_topology():
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
