"""Stage 0 from the command's point of view: train, measure, go on."""

import json

import jax
import numpy as np
import pytest

from sdxl_jax import evaluate, pipelines, train
from sdxl_jax.training import task
from tests import autoencoder_config, tiny_config
from tests.data import datasets


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


def test_resumed_is_unbroken(trained, tmp_path):
  """Its three parts, the adversary's start included, go on where they were."""
  config = autoencoder_config.get_config()
  config.samples.every = 0
  config.optimizer.cosine = False
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  train.train(config, whole)
  config.total_steps = 2
  train.train(config, broken)
  config.total_steps = 4
  train.train(config, broken)
  last = lambda run: json.loads(
    (run / 'metrics.jsonl').read_text().splitlines()[-1]
  )
  for name in ('loss', 'discriminator_loss', 'grad_norm', 'logvar'):
    assert last(whole)[name] == last(broken)[name]


def test_a_discriminator_starts_anew_on_given_weights(trained, tmp_path):
  config = autoencoder_config.get_config()
  config.update(init_from=str(trained), from_scratch=('discriminator',))
  config.update(total_steps=2)
  config.optimizer.learning_rate = 0.0
  config.samples.every = 0
  train.train(config, tmp_path)
  nets = task.make_nets(config)
  load = lambda run, *names: pipelines.load_nets(run, nets, names)
  same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert same(load(trained, 'vae'), load(tmp_path, 'vae'))
  assert not same(
    load(trained, 'discriminator'), load(tmp_path, 'discriminator')
  )


def test_evaluate(trained, tmp_path):
  """Every picture once, the last batch too, on eight devices and on one."""
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
  assert '11 pictures: psnr' in said[-1] and 'without LPIPS' in said[0]
  assert 5 < metrics['psnr'][0] < 40 and -1 < metrics['ssim'][0] < 1
  assert len(metrics['shift']) == 4
  assert json.loads((tmp_path / 'out' / 'metrics.json').read_text()) == metrics
  assert (tmp_path / 'out' / 'reconstructions.png').is_file()
  again = evaluate.evaluate(
    config, trained, tmp_path / 'out', batch_size=5, say=said.append
  )
  assert again['psnr'] == pytest.approx(metrics['psnr'], rel=1e-4)
  assert again['scaling_factor'] == pytest.approx(
    metrics['scaling_factor'], rel=1e-4
  )


def test_scaling_gives_unit_variance(trained, tmp_path):
  """With the factor that it found, it finds that 1 is right."""
  config = autoencoder_config.get_config()
  one = evaluate.evaluate(
    config, trained, tmp_path, pictures=32, say=lambda s: 0
  )
  nets = task.make_nets(config)
  params = pipelines.load_nets(trained, nets, ['vae'])
  source = evaluate.dataset.make_source(config, print)
  batch = np.concatenate(list(evaluate.read(config, source, 32, 8, print)))
  moments = np.asarray(nets.encode(params, batch))
  mean, logvar = np.split(moments, 2, -1)
  rng = np.random.default_rng(0)
  latents = mean + np.exp(logvar / 2) * rng.normal(size=mean.shape)
  scaled = (latents - one['shift']) * one['scaling_factor']
  assert np.square(scaled).mean() == pytest.approx(1, rel=0.05)


def test_a_patch_has_nothing_to_learn():
  config = tiny_config.get_config()
  config.task = 'autoencoder'
  with pytest.raises(ValueError, match="config.vae.kind is 'patch'"):
    train.train(config, 'never')
