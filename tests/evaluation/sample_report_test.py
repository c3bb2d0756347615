"""From folders of images to metrics.json, by the command's flags."""

import json

import jax
import numpy as np
import pytest

from sdxl_jax import evaluate
from sdxl_jax.evaluation import (
  features,
  frechet,
  kid,
  preprocessing,
  sample_report,
)
from sdxl_jax.models import clip_image, inception
from sdxl_jax.weights import inception_weights, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names
from tests.support import commands, random_images, random_params, tiny_clip

MODULE = 'sdxl_jax.evaluate'


@pytest.fixture(scope='module')
def room(tmp_path_factory):
  """Weights of the metrics, samples, real images, prompts and statistics."""
  folder = tmp_path_factory.mktemp('room')
  shapes = inception_weights.shapes(inception.InceptionConfig())
  fresh = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  save(
    folder / 'W' / 'pt_inception-2015-12-05.safetensors',
    random_params.draw(fresh),
  )
  pair = tiny_clip.PAIR.init(jax.random.key(0))
  for name in ('clip-vit-base-patch32', 'clip-vit-large-patch14-336'):
    save(folder / 'W' / name / 'model.safetensors', pair['image'], pair['text'])
  random_images.write(folder / 'S', [(60, 80)] * 5, seed=1)
  random_images.write(folder / 'R', [(64, 64)] * 6, seed=2)
  (folder / 'prompts.txt').write_text('a fox\na pig\na red cat\na cow\nfog\n')
  rng = np.random.default_rng(0)
  spread = np.diag(rng.uniform(0, 1, 2048))
  known = frechet.Statistics(rng.uniform(0, 1, 2048), spread)
  frechet.save_statistics(folder / 'val2014.npz', known)
  return folder


def save(path, *trees):
  """Writes parameters under their published names."""
  path.parent.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for tree in trees:
    tensors |= tensor_names.tensors(jax.tree.map(np.asarray, tree))
  safetensors_file.write(path, tensors)


@pytest.fixture(autouse=True)
def tiny(room, monkeypatch):
  """The published names stand for tiny nets."""
  for name in ('ViT-B/32', 'ViT-L/14@336'):
    monkeypatch.setitem(clip_image.PAIRS, name, tiny_clip.PAIR)
  monkeypatch.chdir(room)


def run(*arguments):
  common = ['--samples=S', '--metric_weights=W', '--reference_cache=kept']
  with commands.parsed(
    MODULE, [*common, '--batch_size=2', *arguments]
  ) as start:
    start()


def test_all_metrics(room, tmp_path, capsys):
  run(
    '--reference=R',
    '--metrics=fid,kid,pr,cmmd,clip',
    '--prompts=prompts.txt',
    '--resamples=20',
    f'--output={tmp_path}',
  )
  report = json.loads((tmp_path / 'metrics.json').read_text())
  found = report['metrics']
  assert set(found) == {'fid', 'kid', 'precision', 'recall', 'cmmd', 'clip'}
  assert report['images'] == 5 and report['reference_images'] == 6
  assert report['clip'] == 'ViT-B/32' and report['resamples'] == 20
  assert 'FID of 5 images is too large' in report['notes'][0]
  for metric in found.values():
    assert metric['low'] <= metric['value'] <= metric['high']
  printed = capsys.readouterr().out
  assert '5 images: fid ' in printed and 'note: FID of 5' in printed
  # By the functions of the README.
  extractor = features.load_inception('W')
  images = [sorted((room / name).iterdir()) for name in ('S', 'R')]
  own, real = (features.compute(extractor, x, batch_size=2) for x in images)
  fid = frechet.distance(*frechet.statistics(own), *frechet.statistics(real))
  assert found['fid']['value'] == pytest.approx(fid, rel=1e-5)
  assert found['kid']['value'] == pytest.approx(
    kid.distance(own, real, subset_size=5), rel=1e-4, abs=1e-6
  )
  clip = features.load_clip('ViT-B/32', 'W/clip-vit-base-patch32')
  embedded = features.compute(
    features.make_clip(clip, preprocessing.clip_crop), images[0]
  )
  assert embedded.shape == (5, 32)
  # The second time, features of the reference are read.
  run('--reference=R', '--metrics=fid', f'--output={tmp_path}')
  assert 'reference: inception features from kept' in capsys.readouterr().out
  again = json.loads((tmp_path / 'metrics.json').read_text())['metrics']
  assert again['fid']['value'] == pytest.approx(found['fid']['value'])


def test_statistics_as_reference(tmp_path):
  run('--reference=val2014.npz', '--resamples=0', f'--output={tmp_path}')
  report = json.loads((tmp_path / 'metrics.json').read_text())
  fid = report['metrics']['fid']
  assert fid['value'] > 0 and fid['low'] is None and fid['high'] is None
  assert report['reference_images'] is None


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--metrics=fid'], 'fid compare with real images: pass --reference'),
    (['--metrics=clip,is', '--reference=R'], "'is' is no choice of metrics"),
    (['--metrics=clip'], 'pass both clip among --metrics and --prompts'),
    (['--reference=R', '--prompts=none.txt'], 'pass both clip among'),
    (['--metrics=clip', '--prompts=none.txt', '--reference=R'], 'no reference'),
    (['--reference=none.npz'], 'none.npz does not exist.*val2014.npz at https'),
    (['--reference=none'], 'none: no such folder, and no .npz'),
    (['--reference=val2014.npz', '--metrics=fid,kid'], 'kid need a folder'),
    (['--reference=R', '--samples=none'], '--samples none: no such folder'),
    (
      ['--reference=R', '--metric_weights=S'],
      'Inception v3 of FID: S/pt_incep.* does not exist .*published at https',
    ),
    (
      ['--metrics=clip', '--prompts=none.txt', '--clip_net=ViT-H-14'],
      'OpenCLIP ViT-H-14: W/CLIP-ViT-H-14.*huggingface.co/laion',
    ),
    (['--reference=R', '--weights=SDXL'], '--weights is for an autoencoder'),
  ],
)
def test_flags_are_checked_before_anything_is_read(
  arguments, message, tmp_path, monkeypatch
):
  for module, name in [
    (features, 'compute_all'),
    (sample_report, 'load'),
    (evaluate.prompts_file, 'read'),
  ]:
    monkeypatch.setattr(module, name, lambda *_: pytest.fail('it reads'))
  with pytest.raises((ValueError, OSError), match=message):
    run(*arguments, f'--output={tmp_path}')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--reference=R'], '--reference is for images: pass --samples too'),
    (['--weights=W'], 'pass --config to measure an autoencoder, or --samples'),
  ],
)
def test_neither_samples_nor_an_autoencoder(arguments, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    with commands.parsed(MODULE, [*arguments, f'--output={tmp_path}']) as start:
      start()


def test_a_prompt_for_each_image(room, tmp_path):
  (tmp_path / 'prompts.txt').write_text('a fox\na pig\n')
  with pytest.raises(ValueError, match='S has 5 images and --prompts 2 lines'):
    run(
      '--metrics=clip',
      f'--prompts={tmp_path / "prompts.txt"}',
      f'--output={tmp_path}',
    )
