"""Stage 0 by its commands: train, evaluate, and the stages after it."""

import json
import types

import jax
import numpy as np
import pytest

from sdxl_jax import evaluate, train
from sdxl_jax.checkpoints import loading, source_configs
from sdxl_jax.models import from_config
from sdxl_jax.sampling import finiteness, pipelines
from sdxl_jax.training import autoencoder_evaluation
from tests.support import (
  autoencoder_config,
  datasets,
  published_config,
  tiny_config,
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  assert train.train(autoencoder_config.get_config(), workdir) == 4
  return workdir


def test_what_training_leaves(trained):
  lines = (trained / 'metrics.jsonl').read_text().splitlines()
  metrics = [json.loads(line) for line in lines]
  assert [m['adversary_weight'] > 0 for m in metrics] == [
    False,
    False,
    True,
    True,
  ]
  assert metrics[3]['l1'] < metrics[0]['l1']
  assert (trained / 'samples' / '0000004.png').is_file()


@pytest.mark.slow
def test_resumed_is_unbroken(trained, tmp_path):
  """Autoencoder, discriminator and its start continue as without a stop."""
  config = autoencoder_config.get_config()
  config.samples.every = 0
  config.optimizer.cosine = False
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  train.train(config, whole)
  config.total_steps = 2
  train.train(config, broken)
  config.total_steps = 4
  train.train(config, broken)

  def last(run):
    return json.loads((run / 'metrics.jsonl').read_text().splitlines()[-1])

  for name in ('loss', 'discriminator_loss', 'grad_norm', 'logvar'):
    assert last(whole)[name] == last(broken)[name]


def test_a_discriminator_starts_anew_on_given_weights(trained, tmp_path):
  config = autoencoder_config.get_config()
  config.update(init_from=str(trained), from_scratch=('discriminator',))
  config.update(total_steps=2)
  config.optimizer.learning_rate = 0.0
  config.samples.every = 0
  train.train(config, tmp_path)
  nets = from_config.make_model(config)

  def load(run, *names):
    return loading.load_params(run, nets, names)

  def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))

  assert same(load(trained, 'vae'), load(tmp_path, 'vae'))
  assert not same(
    load(trained, 'discriminator'), load(tmp_path, 'discriminator')
  )


def test_evaluate(trained, tmp_path):
  """Measures every image once, those of the last batch too."""
  examples = [datasets.example(i, (40, 36 + i)) for i in range(11)]
  config = autoencoder_config.get_config()
  config.data.source = 'folder'
  config.data.folder.path = datasets.write_folder(tmp_path / 'p', examples)[
    'path'
  ]
  config.data.index_workers = 0
  said = []
  metrics = evaluate.evaluate(
    config, trained, tmp_path / 'out', batch_size=1, say=said.append
  )
  assert '11 images: psnr' in said[-1]
  assert any('without LPIPS' in line for line in said)
  assert 5 < metrics['psnr'][0] < 40 and -1 < metrics['ssim'][0] < 1
  assert len(metrics['latents_mean']) == 4
  assert json.loads((tmp_path / 'out' / 'metrics.json').read_text()) == metrics
  assert (tmp_path / 'out' / 'reconstructions.png').is_file()
  again = evaluate.evaluate(
    config, trained, tmp_path / 'out', batch_size=5, say=said.append
  )
  assert again['psnr'] == pytest.approx(metrics['psnr'], rel=1e-4)
  assert again['scaling_factor'] == pytest.approx(
    metrics['scaling_factor'], rel=1e-4
  )


@pytest.mark.slow
def test_latents_are_measured_and_handed_on(tmp_path):
  """Later stages use the scaling that stage 0 measured, which is right."""
  config = autoencoder_config.get_config().unlock()
  config.total_steps, config.samples.every = 2, 0
  config.vae.scaling_factor = None
  config.autoencoder.update(measure_latents=30, measure_mean=True)
  first, second = tmp_path / 'stage0', tmp_path / 'stage1'
  train.train(config, first)
  saved = source_configs.saved_config(first).vae
  assert saved.latents_std == [1.0] * 4 and saved.scaling_factor != 1
  metrics = evaluate.evaluate(config, first, tmp_path, 64, say=lambda s: 0)
  assert saved.scaling_factor == pytest.approx(
    metrics['scaling_factor'], rel=0.1
  )
  np.testing.assert_allclose(
    saved.latents_mean,
    metrics['latents_mean'],
    atol=0.1 / metrics['scaling_factor'],
  )

  config = tiny_config.get_config().unlock()
  config.vae = autoencoder_config.get_config().vae
  config.vae.scaling_factor = None
  config.unet.in_channels = config.unet.out_channels = 4
  config.total_steps = 2
  config.from_scratch = config.trained
  with pytest.raises(ValueError, match='scaling_factor is None, and no'):
    train.train(config, second)
  config.init_from = str(first)
  train.train(config, second)
  vae = pipelines.load(second).model.vae
  assert vae.scaling_factor == saved.scaling_factor
  assert list(vae.latents_mean) == saved.latents_mean


@pytest.mark.slow
def test_averages_to_choose_from(tmp_path):
  """Loads the last parameters, the saved EMA, or a reconstructed one."""
  config = autoencoder_config.get_config()
  config.samples.every, config.total_steps = 0, 6
  config.optimizer.ema_widths = (0.1, 0.25)
  config.optimizer.ema_snapshots = 1
  train.train(config, tmp_path)
  nets = from_config.make_model(config)

  def load(average):
    params = loading.load_params(tmp_path, nets, ['vae'], average=average)
    return params['vae']['decoder']['conv_out']['kernel']

  assert not np.allclose(load('none'), load('ema'), rtol=1e-4)
  np.testing.assert_allclose(load('0.1'), load('ema'), atol=1e-4)
  assert not np.allclose(load('0.25'), load('0.1'), rtol=1e-4)
  with pytest.raises(ValueError, match=r"average is 'EMA'.*\['ema', 'none'\]"):
    load('EMA')
  with pytest.raises(ValueError, match='sigma_rel is 0.4; .* at most 0.289'):
    load('0.4')
  with pytest.raises(ValueError, match='is not a workdir and has no'):
    pipelines.load(published_config.WEIGHTS, average='0.1')


def test_a_patch_has_nothing_to_learn():
  config = tiny_config.get_config()
  config.task = 'autoencoder'
  with pytest.raises(ValueError, match="config.vae.kind is 'patch'"):
    train.train(config, 'never')


def test_metrics_without_a_mean_end_an_evaluation():
  """But a perfect reconstruction has an infinite PSNR."""
  measured = {
    'psnr': np.array([20, np.inf], np.float32),
    'ssim': np.ones(2, np.float32),
    'mean': np.zeros((2, 4), np.float32),
  }
  autoencoder_evaluation.check_measured(measured)
  for name, value in (('psnr', np.nan), ('psnr', -np.inf), ('mean', np.inf)):
    array = measured[name].copy()
    array.flat[0] = value
    with pytest.raises(finiteness.NonFiniteError, match='1 of 2 reconstruct'):
      autoencoder_evaluation.check_measured(measured | {name: array})


def test_a_variant_is_of_the_weights(monkeypatch):
  """That of the config is of the weights that a run starts from."""
  config, seen = autoencoder_config.get_config(), []
  config.init_variant = 'fp16'
  monkeypatch.setattr(
    evaluate,
    'evaluate',
    lambda config, *args, **options: seen.append(config.init_variant),
  )
  options = dict(weights='W', output='O', pictures=1, batch_size=1)
  for variant in (None, 'bf16'):
    args = dict(options, config=config, variant=variant, average='ema')
    evaluate.measure_autoencoder(types.SimpleNamespace(**args))
  assert seen == ['', 'bf16']


@pytest.mark.parametrize(
  'given, mode',
  [
    ({'samples', 'metrics', 'reference', 'output', 'verbosity'}, 'samples'),
    ({'weights', 'prompts', 'metrics', 'steps', 'lora'}, 'weights'),
    ({'benchmark', 'weights', 'prompts', 'seed'}, 'benchmark'),
    ({'validation', 'config', 'weights', 'average'}, 'validation'),
    ({'config', 'weights', 'average', 'config.data.source'}, 'config'),
  ],
)
def test_what_is_measured(given, mode):
  """The flags say it."""
  assert evaluate.choose_mode(given) == mode


@pytest.mark.parametrize(
  'given, message',
  [
    ({'output'}, 'nothing to measure: pass --samples'),
    ({'samples', 'weights'}, '--weights does not go with --samples'),
    ({'samples', 'steps'}, '--steps does not go with --samples'),
    (
      {'weights', 'prompts', 'controlnet'},
      '--controlnet does not go with --weights',
    ),
    ({'config', 'weights', 'metrics'}, '--metrics does not go with --config'),
    ({'config'}, '--config needs --weights'),
    ({'weights'}, '--weights needs --prompts'),
    ({'benchmark', 'prompts'}, '--benchmark needs --weights'),
    (
      {'benchmark', 'weights', 'prompts', 'reference'},
      '--reference does not go with --benchmark',
    ),
  ],
)
def test_flags_of_different_measurements(given, message):
  with pytest.raises(ValueError, match=message):
    evaluate.choose_mode(given)
