"""The claims in miniature from training to table, with few steps of small nets.

What is measured of such nets says nothing; that it is measured, and where it is
written, is tested.
"""

import numpy as np
import pytest

from configs.claims import autoencoder
from tests.benchmarks import claims
from tests.benchmarks.miniature import (
  experiments,
  feature_net,
  measure,
  page,
  results,
)

STEPS = 2
FEW = (
  f'--config.total_steps={STEPS}',
  '--config.optimizer.warmup_steps=0',
  '--config.global_batch_size=4',
  '--config.checkpoint.every=1',
  '--config.log_every=1',
)
SMALL = (
  '--config.unet.block_out_channels=(8, 16)',
  '--config.unet.transformer_depth=(0, 1)',
  '--config.unet.mid_transformer_depth=0',
  '--config.unet.num_heads=(1, 1)',
  '--config.unet.norm_num_groups=4',
)
# {experiment: the arm that is run, and flags besides those of `FEW`}
RUNS = {
  'size_conditioning': ('size_cond', SMALL),
  'crop_conditioning': ('nocond', SMALL),
  'multi_aspect': ('multi', SMALL),
  'refiner': ('refiner', SMALL),
  'autoencoder': ('large_batch', ('--config.checkpoint.keep_every=1',)),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder of the runner; what starts from a run finds it there."""
  return tmp_path_factory.mktemp('claims')


@pytest.fixture(autouse=True)
def small(monkeypatch):
  command = claims.command

  def command_of_few_steps(folder, run):
    return [*command(folder, run), *FEW, *RUNS[run.experiment][1]]

  monkeypatch.setattr(claims, 'command', command_of_few_steps)
  monkeypatch.setattr(autoencoder, 'STEPS', STEPS)
  for name, value in [('SAMPLES', 6), ('REFERENCES', 12), ('FEW', 3)]:
    monkeypatch.setattr(measure, name, value)
  monkeypatch.setattr(measure, 'STEPS', 2)
  monkeypatch.setattr(feature_net, 'STEPS', 3)
  monkeypatch.setattr(feature_net, 'TRAINED', 80)
  monkeypatch.setattr(feature_net, 'TESTED', 20)


@pytest.mark.slow
@pytest.mark.parametrize('name', RUNS)
def test_from_training_to_table(name, folder, tmp_path):
  run = results.Run(name, RUNS[name][0], 0)
  experiment = experiments.EXPERIMENTS[name]
  base = results.Run(*experiment.base, 0) if experiment.base else None
  runs = [run] if base is None else [base, run]
  claims.run_all(folder, runs)
  assert claims.run_all(folder, runs) == 0
  table = results.tabulate(results.read(folder), name)
  for row, metrics in table.items():
    for column in experiment.columns:
      assert np.isfinite(metrics[column.metric].mean), (row, column)
  if name == 'refiner':
    assert [*table] == ['base', 'base + refiner']
    both = [table[row]['fid'].mean for row in table]
    assert both[0] != both[1]  # the refiner took part
  head = {'side': 32, 'samples': 6, 'references': 12}
  page.write(folder, head, tmp_path)
  assert f'{page.FIGURES}/{name}.svg' in (tmp_path / page.PAGE).read_text()
