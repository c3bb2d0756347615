"""The claims in miniature: their settings, page and runner."""

import math
import re

import flax.traverse_util
import jax
import pytest

from configs.claims import (
  autoencoder,
  crop_conditioning,
  multi_aspect,
  refiner,
  size_conditioning,
  small,
)
from sdxl_jax.data.sources import synthetic
from sdxl_jax.models import from_config
from sdxl_jax.training import config_validation, config_warnings, tasks
from tests.benchmarks import claims
from tests.benchmarks.miniature import (
  experiments,
  figures,
  measure,
  page,
  results,
)

MODULES = {
  'size_conditioning': size_conditioning,
  'crop_conditioning': crop_conditioning,
  'multi_aspect': multi_aspect,
  'refiner': refiner,
  'autoencoder': autoencoder,
}
CONFIGS = [
  (name, arm)
  for name, module in MODULES.items()
  for arm in getattr(module, 'ARMS', [''])
]
HEAD = {'side': 32, 'samples': 240, 'references': '1,000'}


def config_of(name, arm):
  module = MODULES[name]
  return module.get_config(arm) if arm else module.get_config()


@pytest.mark.parametrize('name, arm', CONFIGS)
def test_configs_can_be_trained(name, arm):
  config = config_of(name, arm)
  config_validation.check(config)
  warnings = config_warnings.of_config(config)
  # The autoencoder has no discriminator, on purpose.
  assert all('adversary_start' in line for line in warnings)
  task = tasks.make_task(config, from_config.make_model(config))
  state = jax.eval_shape(task.init, jax.random.key(0))
  assert set(state.params) - {'logvar'} == set(config.trained)


@pytest.mark.parametrize('name', [n for n in MODULES if n != 'refiner'])
def test_arms_differ_in_what_they_are_for(name):
  """All else is the same, so that a difference is that of the claim."""
  allowed = {
    'size_conditioning': {'data.filters.min_side', 'data.fixed_original_size'},
    'crop_conditioning': {'data.fixed_crop_top_left'},
    'multi_aspect': {'data.buckets'},
    'autoencoder': {'global_batch_size', 'total_steps'},
  }[name]
  flat = [
    flax.traverse_util.flatten_dict(config_of(name, arm).to_dict(), sep='.')
    for arm in MODULES[name].ARMS
  ]
  differ = {
    field for field in flat[0] if any(f[field] != flat[0][field] for f in flat)
  }
  assert differ == allowed


@pytest.mark.parametrize('name', [n for n in MODULES if n != 'refiner'])
def test_an_unknown_arm_is_refused(name):
  with pytest.raises(ValueError, match='choose one of'):
    MODULES[name].get_config('other')


def test_as_many_images_are_small_as_in_the_paper():
  source = synthetic.Scenes(**config_of('size_conditioning', '').data.scenes)
  assert len(source) == size_conditioning.LENGTH
  assert (source.sizes.min(axis=1) < small.SIDE).sum() == 156  # 39 %


@pytest.mark.parametrize(
  'name, least',
  [('crop_conditioning', 32), ('multi_aspect', 32), ('autoencoder', 32)],
)
def test_no_image_of_the_others_is_enlarged(name, least):
  source = synthetic.Scenes(**config_of(name, '').data.scenes)
  assert source.sizes[:20_000].min() >= least


def record(folder, name, arm, seed, rows):
  found = {'rows': rows, 'train_s': 60.0, 'measure_s': 20.0, 'load': 1.5}
  results.write(folder, results.Run(name, arm, seed), found)


def test_means_and_deviations(tmp_path):
  for seed, value in enumerate([1.0, 2.0, 6.0]):
    record(tmp_path, 'refiner', 'refiner', seed, {'base': {'fid': value}})
  table = results.tabulate(results.read(tmp_path), 'refiner')
  statistic = table['base']['fid']
  assert statistic.mean == 3
  assert statistic.deviation == pytest.approx(math.sqrt(7))
  assert page.format_value(statistic, 1) == '3.0 ± 2.6'


CROP = experiments.EXPERIMENTS['crop_conditioning']


@pytest.mark.parametrize(
  'with_it, without, start',
  [
    ((10, 12, 11), (50, 55, 52), 'The miniature agrees: '),
    ((50, 55, 52), (10, 12, 11), 'The miniature contradicts it: '),
    ((10, 55, 30), (12, 50, 33), 'The miniature does not show it: '),
    ((10,), (50,), 'One seed says nothing yet: '),
  ],
)
def test_verdict(tmp_path, with_it, without, start):
  for arm, values in ('crop_cond', with_it), ('nocond', without):
    for seed, value in enumerate(values):
      record(tmp_path, 'crop_conditioning', arm, seed, {arm: {'cut': value}})
  table = results.tabulate(results.read(tmp_path), 'crop_conditioning')
  text = page.verdict(CROP.expectations[0], CROP.columns, table)
  assert text.startswith(start)
  wins = sum(a < b for a, b in zip(with_it, without))
  assert f'better in {wins} of {len(with_it)} seed' in text


def test_a_page_says_what_is_missing(tmp_path):
  folder, root = tmp_path / 'runs', tmp_path / 'root'
  page.write(folder, HEAD, root)
  empty = (root / page.PAGE).read_text()
  assert '**0 of 30 runs are finished**' in empty
  for name in experiments.EXPERIMENTS:
    assert f'`{name}` is not run yet' in empty
  assert not list(root.glob('.github/**/*.svg'))


def test_a_page_of_some_runs(tmp_path):
  folder, root = tmp_path / 'runs', tmp_path / 'root'
  metrics = {'cut': 12.5, 'fid': 3.25, 'right': 90.0}
  for seed in range(2):
    rows = {'crop_cond': metrics | {'cut': 12.5 + seed}}
    record(folder, 'crop_conditioning', 'crop_cond', seed, rows)
  page.write(folder, HEAD, root)
  text = (root / page.PAGE).read_text()
  assert '**2 of 30 runs are finished**' in text
  assert '| crop_cond | 13.0 ± 0.7 | 3.2 ± 0.0 | 90.0 ± 0.0 |' in text
  missing = ' | '.join(['not run yet'] * 3)
  assert f'| nocond | {missing} |' in text
  assert 'of `crop_cond` against `nocond`: not run yet.' in text
  assert '43.84' in text and '`size_conditioning` is not run yet' in text
  link = re.search(r'!\[.*\]\((.*)\)', text).group(1)
  svg = ((root / page.PAGE).parent / link).read_text()
  assert svg.startswith('<svg') and svg.count('<circle') == 2
  long = [line for line in text.splitlines() if len(line) > page.WIDTH]
  assert all(line.startswith(('|', '![')) for line in long)


def test_sharpness_by_original_size(tmp_path):
  for seed, high in enumerate([80.0, 90.0]):
    metrics = {'sharpness_16': 85.0, 'sharpness_72': high}
    rows = {'size_cond': metrics}
    record(tmp_path, 'size_conditioning', 'size_cond', seed, rows)
  table = results.tabulate(results.read(tmp_path), 'size_conditioning')
  text = page.size_curve(table)
  assert '| sharpness, % | 85.0 ± 0.0 | 85.0 ± 7.1 |' in text
  assert 'it rises in 1 of 2 seeds.' in ' '.join(text.split())
  assert not page.size_curve({})


def test_a_figure_has_each_seed_and_no_deviation_of_one():
  one = figures.draw({'a': results.Statistic({0: 1.0})}, 'FID')
  assert one.count('<circle') == 1 and 'stroke-width="3"' in one
  three = results.Statistic({0: 1.0, 1: 2.0, 2: 4.0})
  both = figures.draw({'a': three, 'b <c>': three}, 'FID')
  assert both.count('<circle') == 6 and 'b &lt;c&gt;' in both
  with pytest.raises(ValueError, match='no figures of FID'):
    figures.draw({}, 'FID')


def test_every_experiment_names_arms_that_exist():
  for name, experiment in experiments.EXPERIMENTS.items():
    arms = getattr(MODULES[name], 'ARMS', ('refiner',))
    assert set(experiment.arms) == set(arms)
    if experiment.base:
      base, arm = experiment.base
      assert arm in MODULES[base].ARMS
      # What starts from a run is planned after it.
      assert [*MODULES].index(base) < [*MODULES].index(name)


def test_a_finished_run_is_not_run_again(tmp_path):
  runs = claims.plan(['crop_conditioning', 'refiner'], ['0', '1'])
  assert len(runs) == 6
  done, reported = [], []

  def finish(folder, run, kit):
    assert kit == 'kit'
    done.append(run)
    if len(done) == 3:
      raise KeyboardInterrupt
    results.write(folder, run, {'rows': {}})

  def run_all():
    claims.run_all(
      tmp_path, runs, lambda folder: 'kit', finish, lambda: reported.append(0)
    )

  with pytest.raises(KeyboardInterrupt):
    run_all()
  assert done == runs[:3] and len(reported) == 2
  run_all()
  assert done == [*runs[:3], *runs[2:]]
  run_all()  # nothing is left, so that no net is loaded either
  assert len(done) == 7


def test_original_sizes_of_samples_are_those_of_training():
  source = synthetic.Scenes(**config_of('multi_aspect', '').data.scenes)
  low, high = source.sizes[:20_000].min(), source.sizes[:20_000].max()
  for size in multi_aspect.TALL, multi_aspect.WIDE, measure.SQUARE:
    assert all(low <= measure.ENLARGED * side <= high for side in size)


def test_an_unknown_experiment_is_refused():
  with pytest.raises(ValueError, match="'other'; choose of"):
    claims.plan(['other'], ['0'])


def test_the_command_of_a_run(tmp_path):
  run = results.Run('refiner', 'refiner', 2)
  words = claims.command(tmp_path, run)
  assert words[2:4] == ['sdxl_jax.train', '--config=configs/claims/refiner.py']
  assert '--config.seed=2' in words
  base = tmp_path / 'size_conditioning' / 'size_cond' / 'seed2'
  assert words[-1] == f'--config.init_from={base}'
  words = claims.command(tmp_path, results.Run('multi_aspect', 'multi', 0))
  assert '--config=configs/claims/multi_aspect.py:multi' in words


def test_a_failed_training_shows_the_end_of_its_log(tmp_path, monkeypatch):
  run = results.Run('multi_aspect', 'multi', 0)
  script = 'print("first"); raise SystemExit("the reason")'
  monkeypatch.setattr(
    claims, 'command', lambda *_: [claims.sys.executable, '-c', script]
  )
  with pytest.raises(RuntimeError, match='(?s)ended with 1.*the reason'):
    claims.train(tmp_path, run)
  assert not results.path(tmp_path, run).is_file()


def test_a_trained_run_is_not_trained_again(tmp_path, monkeypatch):
  """Where only its measurement is missing."""
  run = results.Run('multi_aspect', 'multi', 0)
  monkeypatch.setattr(
    claims, 'command', lambda *_: [claims.sys.executable, '-c', 'print(1)']
  )
  took = claims.train(tmp_path, run)
  assert took['train_s'] > 0
  monkeypatch.delattr(claims, 'command')
  assert claims.train(tmp_path, run) == took
