"""Runs that hold records out: the same training, and figures that resume."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from sdxl_jax import evaluate, precompute, train
from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.data.sources import held_out
from sdxl_jax.training import offline_validation
from tests.support import (
  autoencoder_config,
  caches,
  datasets,
  processes,
  validation_config,
  word_runs,
)

pytestmark = pytest.mark.slow
CONFIG = 'tests/support/validation_config.py'


def get_config(**changes):
  config = validation_config.get_config()
  config.update(changes)
  return config


def lines_of(workdir):
  """Returns the lines of metrics: those of steps, those of validation."""
  text = (workdir / 'metrics.jsonl').read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  found = [line for line in lines if 'validation/loss' in line]
  return [line for line in lines if line not in found], found


def state_of(workdir, step):
  """Reads all arrays of a checkpoint."""
  folder = pathlib.Path(workdir) / 'checkpoints' / str(step)
  shapes = orbax_checkpoint.read_shapes(folder)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  target = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), shapes
  )
  return orbax_checkpoint.restore_subtree(folder, shapes, (), target)


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def measure(config, workdir, output, average='ema'):
  weights = offline_validation.Weights(workdir, average)
  return offline_validation.evaluate(config, weights, output, 2, say=print)


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('straight')
  assert train.train(get_config(), workdir) == 4
  return workdir


@pytest.fixture
def workdir(straight, tmp_path):
  """A copy of the finished run."""
  return shutil.copytree(straight, tmp_path / 'run')


def test_what_a_run_writes(straight):
  steps, found = lines_of(straight)
  assert [line['step'] for line in steps] == [1, 2, 3, 4]
  assert [line['step'] for line in found] == [0, 2, 4]
  for line in found:
    for prefix in 'validation/', 'validation/last_':
      levels = [line[f'{prefix}loss_t{t}'] for t in range(0, 1000, 125)]
      assert np.mean(levels) == pytest.approx(line[f'{prefix}loss'], rel=1e-4)
      gap = line[f'{prefix}loss'] - line[f'{prefix}trained_loss']
      assert gap == pytest.approx(line[f'{prefix}gap'], abs=1e-4)
  first, *others = found
  # Before the first step the EMA are the parameters themselves.
  assert first['validation/loss'] == first['validation/last_loss']
  assert all(x['validation/loss'] != x['validation/last_loss'] for x in others)
  names = (straight / 'held_out.txt').read_text().splitlines()
  assert 10 < len(names) < 30
  assert (
    f'{len(names)}  left out: held' in (straight / 'records.txt').read_text()
  )
  events = list((straight / 'tensorboard').iterdir())
  assert any(b'validation/last_gap' in e.read_bytes() for e in events)


def test_training_is_the_same_without_validation(straight, tmp_path):
  """Parameters, EMA and moments, bit for bit."""
  config = get_config()
  config.validation.every = 0
  train.train(config, tmp_path)
  assert not lines_of(tmp_path)[1]
  with_it, without = (state_of(w, 4) for w in (straight, tmp_path))
  assert len(jax.tree.leaves(with_it)) > 100 and same(with_it, without)
  for a, b in zip(lines_of(straight)[0], lines_of(tmp_path)[0], strict=True):
    assert (a['loss'], a['grad_norm']) == (b['loss'], b['grad_norm'])


def test_a_resumed_run_measures_the_same(straight, tmp_path, capsys):
  train.train(get_config(total_steps=2), tmp_path)
  assert [line['step'] for line in lines_of(tmp_path)[1]] == [0, 2]
  assert 'validation loss after step 2: ema ' in capsys.readouterr().out
  train.train(get_config(), tmp_path)
  assert lines_of(tmp_path)[1] == lines_of(straight)[1]
  assert same(state_of(tmp_path, 4), state_of(straight, 4))


def test_what_was_cut_off_is_measured_on_resuming(straight, workdir):
  """As if the run had been killed between its checkpoint and validation."""
  shutil.rmtree(workdir / 'checkpoints' / '4')
  lines = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
  kept = [
    line for line in lines if not ('validation' in line and '"step": 2' in line)
  ]
  assert len(kept) == len(lines) - 1
  (workdir / 'metrics.jsonl').write_text(''.join(kept))
  train.train(get_config(), workdir)
  assert lines_of(workdir)[1] == lines_of(straight)[1]


def test_another_share_is_another_run(workdir):
  config = get_config(total_steps=6)
  config.validation.share = 0.2
  with pytest.raises(ValueError, match='validation.share: 0.1 > 0.2'):
    train.train(config, workdir)
  # A config that says nothing goes on with what the run holds out.
  config.validation.share = None
  assert train.train(config, workdir) == 6
  assert [line['step'] for line in lines_of(workdir)[1]] == [0, 2, 4, 6]


def test_runs_of_earlier_versions_go_on(tmp_path):
  """They held out nothing, and their configs say nothing of it."""
  config = get_config(total_steps=2)
  config.validation.share = 0.0
  train.train(config, tmp_path)
  configs = [
    tmp_path / 'config.json',
    *(tmp_path / 'checkpoints').glob('*/config/metadata'),
  ]
  assert len(configs) > 1
  for path in configs:
    saved = json.loads(path.read_text())
    assert saved.pop('validation')['share'] == 0
    path.write_text(json.dumps(saved))
  config = get_config()
  config.validation.update(share=None, every=5000, records=128)
  assert train.train(config, tmp_path) == 4
  assert not lines_of(tmp_path)[1]


def test_evaluate_measures_the_same(straight, tmp_path):
  line = lines_of(straight)[1][-1]
  for average, prefix in (('ema', ''), ('none', 'last_')):
    found = measure(get_config(), straight, tmp_path, average)
    for name in ('loss', 'loss_t0', 'loss_t875', 'trained_loss'):
      expected = line[f'validation/{prefix}{name}']
      assert found[name] == pytest.approx(expected, rel=1e-4)
    assert found['loss_16x16'] == found['loss']
    assert found['records'] == {'held_out': 6, 'trained': 6}
    saved = (tmp_path / 'validation.json').read_text()
    assert json.loads(saved) == json.loads(json.dumps(found))
  config = get_config()
  config.validation.share = None  # as the run held out
  assert measure(config, straight, tmp_path)['share'] == 0.1


def test_evaluate_refuses_what_it_cannot_measure(straight, tmp_path):
  config = get_config()
  config.validation.share = 0.0
  with pytest.raises(ValueError, match='held out no records'):
    measure(config, straight, tmp_path)
  config.validation.share = 1e-9
  with pytest.raises(ValueError, match='none of the records falls: raise it'):
    measure(config, straight, tmp_path)
  with pytest.raises(ValueError, match='or --validation for the loss'):
    evaluate.evaluate(get_config(), straight, tmp_path)


def test_processes_do_not_matter(straight, tmp_path):
  """Two with a device each measure what four devices of one measure."""
  command = ['sdxl_jax.train', '--config', CONFIG, '--workdir', str(tmp_path)]
  logs = [tmp_path / f'{i}.log' for i in range(2)]
  two = processes.start([*command, '--config.total_steps=2'], logs)
  codes = [process.wait(900) for process in two]
  assert codes == [0, 0], [log.read_text()[-2000:] for log in logs]
  found, expected = lines_of(tmp_path)[1], lines_of(straight)[1]
  assert [line['step'] for line in found] == [0, 2]
  for line, other in zip(found, expected):
    assert line.keys() == other.keys()
    for name in line:
      if 'gap' not in name:  # a small difference of the others
        assert line[name] == pytest.approx(other[name], rel=1e-4), name


def test_words_and_factors(tmp_path):
  """A run of textual inversion with a LoRA, and the same figures offline."""
  for name in 'base', 'images':
    (tmp_path / name).mkdir()
  base = word_runs.save_base(tmp_path / 'base')
  images = word_runs.save_images(tmp_path / 'images')
  config = word_runs.get_config(base, images, total_steps=4)
  config.samples.every = 0
  config.validation.update(share=0.4, every=4)
  workdir = tmp_path / 'run'
  train.train(config, workdir)
  first, last = lines_of(workdir)[1]
  assert first['validation/last_loss'] != last['validation/last_loss']
  found = measure(config, workdir, tmp_path / 'out', 'none')
  for name in 'loss', 'trained_loss':
    expected = last[f'validation/last_{name}']
    assert found[name] == pytest.approx(expected, rel=1e-4)
  # Of what the run started from: the words are other text there.
  assert np.isfinite(measure(config, base, tmp_path / 'base_out')['loss'])


def test_a_cache_holds_out_the_same_records(tmp_path, monkeypatch):
  """It has all records, of which the run leaves out those of their names."""
  monkeypatch.setattr(precompute.cache_encoder, 'Encoder', caches.PlainEncoder)
  examples = [datasets.example(i, (32, 48)) for i in range(24)]
  datasets.write_folder(tmp_path / 'images', examples)
  config = caches.config_of(tmp_path / 'images')
  config.validation.update(share=0.3, every=2, records=4)
  precompute.precompute(config, tmp_path / 'cache', say=list)
  images, cache = tmp_path / 'on_images', tmp_path / 'on_cache'
  config.total_steps, config.global_batch_size = 2, 4
  train.train(config, images)
  config.data.source = 'precomputed'
  config.data.precomputed.path = str(tmp_path / 'cache')
  config.trained = ('unet',)
  config.from_scratch = ()
  config.init_from = str(images)
  train.train(config, cache)

  def held(workdir):
    text = (workdir / 'held_out.txt').read_text()
    return {pathlib.Path(line).name for line in text.splitlines()}

  assert held(images) == held(cache) and 2 < len(held(images)) < 15
  assert [line['step'] for line in lines_of(cache)[1]] == [0, 2]


def test_an_autoencoder(tmp_path):
  config = autoencoder_config.get_config()
  config.data.scenes.length = 200
  config.total_steps, config.samples.every = 2, 0
  config.validation.update(share=0.1, every=2, records=6)
  workdir = tmp_path / 'run'
  train.train(config, workdir)
  first, last = lines_of(workdir)[1]
  assert first['validation/l1'] == first['validation/loss'] > 0
  found = measure(config, workdir, tmp_path / 'out')
  assert found['l1'] == pytest.approx(last['validation/l1'], rel=1e-4)


def test_a_large_set_is_validated_on_unasked(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(held_out, 'LEAST_RECORDS', 200)
  monkeypatch.setattr(held_out, 'MOST_SHARE', 0.1)
  config = get_config(total_steps=2)
  config.validation.share = None
  train.train(config, tmp_path)
  said = capsys.readouterr().out
  assert 'of 200 records are held out (config.validation.share = 0.1)' in said
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['validation']['share'] == 0.1
  assert len(lines_of(tmp_path)[1]) == 2
  # Of a set that is small now, the run goes on to hold out the same.
  monkeypatch.setattr(held_out, 'LEAST_RECORDS', 3200)
  config.total_steps = 4
  train.train(config, tmp_path)
  assert len(lines_of(tmp_path)[1]) == 3


def test_memorisation_widens_the_gap(tmp_path):
  """Images of noise have nothing in common that could be learned."""
  examples = []
  rng = np.random.default_rng(0)
  for i in range(12):
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    image = datasets.encode(pixels)
    examples.append(datasets.example(i, (16, 16), image=image))
  config = get_config(total_steps=300, log_every=100, caption_dropout=0.0)
  config.data.update(source='folder', index_workers=0)
  config.data.folder.path = datasets.write_folder(tmp_path / 'p', examples)[
    'path'
  ]
  config.checkpoint.every = 300
  config.validation.update(share=0.4, every=300, records=12)
  train.train(config, tmp_path / 'run')
  first, last = lines_of(tmp_path / 'run')[1]
  name = 'validation/last_'
  learned = first[f'{name}trained_loss'] - last[f'{name}trained_loss']
  widened = last[f'{name}gap'] - first[f'{name}gap']
  assert learned > 0
  assert widened > 0.5 * first[f'{name}loss']
