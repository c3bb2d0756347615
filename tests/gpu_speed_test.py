"""gpu_speed: its cases, processes and table; all parts with tiny nets."""

import importlib.util
import json
import os
import select
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.benchmarks import gpu_table
from tests.benchmarks.gpu import cases, nets, runner, settings

LINE = dict(
  part='ours_sample',
  choice='bfloat16',
  card='NVIDIA H100 80GB HBM3',
  date='2000-01-01',
  dtype='bfloat16',
  attention='cudnn',
  batch=4,
  images_per_s=2.0,
  share_of_peak=0.5,
)
TORCH = LINE | dict(part='torch_sample', images_per_s=1.6)
SINGLE = dict(choice='float32', dtype='float32')
FOUND = dict(
  jax='0.10.2',
  jax_platform='gpu',
  jax_devices='cuda:0',
  torch='2.13.0',
  torch_cuda=True,
)


def test_first_choices_of_all_parts_come_first():
  choices = {'ours_sample': ['a', 'b', 'c'], 'ours_train': ['x']}
  names = cases.in_order(['ours_train', 'ours_sample', 'ceiling'], choices)
  assert names == [
    'ours_train/x',
    'ours_sample/a',
    'ceiling/',
    'ours_sample/b',
    'ours_sample/c',
  ]
  with pytest.raises(ValueError, match="no part is named 'loading'"):
    cases.in_order(['loading'], {})


def test_pytorch_trains_the_batches_of_full_rematerialisation():
  assert cases.peer_batches(['full:4', 'dots:2', 'full:8']) == ['4', '8']
  for choice in ('full', 'full:', 'some:4', 'full:-1'):
    with pytest.raises(ValueError, match='is not REMAT:BATCH'):
      cases.parse_train(choice)


@pytest.mark.parametrize(
  'part, changes, tiny, reason',
  [
    ('ours_sample', {}, False, ''),
    ('torch_sample', {}, False, ''),
    ('devices', {'jax': None}, False, ''),
    ('ceiling', {'jax_platform': 'cpu'}, False, 'no GPU: install its plug-in'),
    ('ceiling', {'jax_platform': 'cpu'}, True, ''),
    ('ours_lora', {'jax': None, 'jax_missing': 'absent'}, True, 'absent'),
    ('torch_train', {'torch': None, 'torch_missing': 'gone'}, True, 'gone'),
    ('torch_train', {'torch_cuda': False}, False, 'finds no GPU'),
    ('torch_train', {'torch_cuda': False}, True, ''),
    ('torch_train', {'jax': None}, False, ''),
  ],
)
def test_parts_are_left_out_for_what_is_missing(part, changes, tiny, reason):
  found = runner.why_not(part, FOUND | changes, tiny)
  assert reason in found and bool(reason) == bool(found)


def test_no_answer_leaves_out_all_parts():
  for part in cases.PARTS:
    assert 'no answer' in runner.why_not(part, {}, tiny=False)


@pytest.fixture
def setting(tmp_path):
  return settings.Setting(tmp_path, case='ceiling/', card='card', turns=1)


def run_code(setting, code, limit=60.0):
  """Runs Python code as a case; returns its lines."""
  environment = runner.environment(True, setting.out / 'programs')
  return runner.run(setting, [sys.executable, '-c', code], environment, limit)


def test_a_hanging_process_is_cut_off_with_its_children(setting):
  # The pipe has an end once no process holds it open.
  os.mkfifo(pipe := setting.out / 'pipe')
  reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
  code = f"""
import subprocess, sys, time
subprocess.Popen(['sh', '-c', 'exec 3> {pipe}; echo held >&3; sleep 99'])
print('last words', file=sys.stderr, flush=True)
time.sleep(99)
"""
  (line,) = run_code(setting, code, limit=8.0)
  assert line['failed'] == 'cut off after 8 s' and line['log'] == ['last words']
  assert os.read(reader, 100) == b'held\n'
  assert select.select([reader], [], [], 30.0)[0], 'a child lives on'
  assert os.read(reader, 100) == b''
  os.close(reader)


def test_a_crash_keeps_earlier_lines(setting):
  code = f"""
import os
with open({str(setting.out / 'results.jsonl')!r}, 'a') as file:
  file.write('{json.dumps(LINE)}\\n')
os.abort()
"""
  first, second = run_code(setting, code)
  assert first == LINE and second['failed'] == 'ended with -6'


def test_an_error_is_a_line_and_others_are_measured(setting):
  for batch in (1, 2):
    with setting.attempt(batch=batch):
      if batch == 1:
        raise RuntimeError('RESOURCE_EXHAUSTED:\n out of memory')
      setting.report(batch=batch, s=1.0)
  failed, measured = runner.read_lines(setting.out / 'results.jsonl')
  assert failed['failed'] == 'RuntimeError: RESOURCE_EXHAUSTED: out of memory'
  assert failed['batch'] == 1 and measured['s'] == 1.0


def test_first_calls_are_not_counted(monkeypatch):
  ticks = iter([0, 10, 10, 15, 15, 18, 18, 19, 19, 21])
  monkeypatch.setattr(settings.time, 'perf_counter', lambda: next(ticks))
  fields = settings.timed(lambda: None, turns=3)
  counted = {'s': 2, 's_least': 1, 's_most': 3, 'turns': 3}
  assert fields == {'first_s': 10, **counted}


def test_rows_have_the_peer_of_the_same_setting():
  older = TORCH | dict(images_per_s=9.0)
  others = [TORCH | {'batch': 8}, TORCH | {'card': 'T4'}, TORCH | SINGLE]
  (row,) = gpu_table.rows([LINE, older, TORCH, *others])
  assert row == (
    'NVIDIA H100 80GB HBM3',
    '2000-01-01',
    'sample, 20 steps, bfloat16, cudnn, batch 4',
    '2.00',
    '50%',
    '1.60',
    '1.25',
  )
  (alone,) = gpu_table.rows([LINE | {'share_of_peak': None}])
  assert alone[4:] == ('?', '-', '-')


def test_tiny_lines_and_failures_make_no_row():
  failed = {k: v for k, v in LINE.items() if k != 'images_per_s'}
  failed['failed'] = 'cut off after 240 s'
  lines = [LINE | {'tiny': True}, failed]
  assert gpu_table.table(lines) == ''
  (text,) = gpu_table.missing(lines)
  assert text.endswith('ours_sample/bfloat16, batch 4: cut off after 240 s')


def test_random_parameters_keep_the_variance():
  shapes = {
    name: jax.ShapeDtypeStruct(shape, 'bfloat16')
    for name, shape in [
      ('q/kernel', (256, 64)),
      ('k/kernel', (256, 64)),
      ('stack/kernel', (3, 256, 64)),
      ('conv/kernel', (3, 3, 32, 64)),
      ('norm/scale', (512,)),
      ('norm/bias', (512,)),
    ]
  }
  params = {n: np.float32(x) for n, x in nets.draw(shapes).items()}
  for name, fan_in in [('q', 256), ('k', 256), ('stack', 256), ('conv', 288)]:
    std = params[f'{name}/kernel'].std() * fan_in**0.5
    assert 0.9 < std < 1.1, name
  q, k = (params[f'{name}/kernel'].ravel() for name in 'qk')
  assert abs(np.corrcoef(q, k)[0, 1]) < 0.05
  assert abs(params['norm/scale'].mean() - 1) < 0.05
  assert abs(params['norm/bias'].mean()) < 0.05


@pytest.mark.slow
def test_all_parts_with_tiny_nets(tmp_path):
  parts = list(cases.PARTS)
  if not all(map(importlib.util.find_spec, ('torch', 'diffusers'))):
    parts = [part for part in parts if not part.startswith('torch')]
  out = tmp_path / 'run'
  command = [sys.executable, '-m', 'tests.benchmarks.gpu_speed', '--tiny']
  command += [f'--out={out}', '--turns=1', '--batches=2', '--sample=bfloat16']
  command += ['--train=full:2', '--lora=full:2', f'--parts={",".join(parts)}']
  command += ['--seconds=1500', '--limit=600']
  subprocess.run(command, cwd=runner.ROOT, check=True, timeout=1600)
  lines = runner.read_lines(out / 'results.jsonl')
  assert not [x for x in lines if 'failed' in x or 'skipped' in x]
  measured = {x['part']: x for x in lines if 's' in x}
  assert set(measured) == set(parts)
  for part, line in measured.items():
    assert line['tiny'] and line['s'] > 0
    if part != 'ceiling':
      assert line['images_per_s'] == pytest.approx(2 / line['s'], rel=1e-3)
    if part.startswith('ours'):
      assert line['tflop_per_image'] > 0 and line['programs'] > 0
  assert gpu_table.table(lines) == ''
