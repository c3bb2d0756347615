"""From folders of images to metrics.json, by the command's flags."""

import json

import pytest

from sdxl_jax import evaluate
from sdxl_jax.evaluation import (
  features,
  frechet,
  kid,
  preprocessing,
  sample_report,
)
from tests.support import commands, metric_room

MODULE = 'sdxl_jax.evaluate'


@pytest.fixture(scope='module')
def room(tmp_path_factory):
  return metric_room.make(tmp_path_factory.mktemp('room'))


@pytest.fixture(autouse=True)
def tiny(room, monkeypatch):
  metric_room.enter(room, monkeypatch)


def run(*arguments):
  common = ['--samples=S', '--metric_weights=W', '--reference_cache=kept']
  with commands.parsed(
    MODULE, [*common, '--batch_size=2', *arguments]
  ) as start:
    start()


def test_all_metrics(room, tmp_path, capsys):
  run(
    '--reference=R',
    '--metrics=fid,kid,pr,cmmd,clip,memorised',
    '--prompts=prompts.txt',
    '--resamples=20',
    f'--output={tmp_path}',
  )
  report = json.loads((tmp_path / 'metrics.json').read_text())
  found = report['metrics']
  names = 'fid', 'kid', 'precision', 'recall', 'cmmd', 'clip', 'memorised'
  assert set(found) == set(names)
  assert [set(pair) for pair in report['nearest']] == [
    {'sample', 'training_image', 'similarity', 'ratio'}
  ] * 5
  assert report['images'] == 5 and report['reference_images'] == 6
  assert report['clip'] == 'ViT-B/32' and report['resamples'] == 20
  assert 'FID of 5 images is too large' in report['notes'][0]
  for metric in found.values():
    assert metric['low'] <= metric['value'] <= metric['high']
  page = (tmp_path / 'report.html').read_text()
  assert 'Most like a training image' in page and 'a red cat' in page
  assert page.count('data:image/jpeg') == 10
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
    (['--reference=R', '--weights=SDXL'], '--weights does not go with --sam'),
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
    (['--reference=R'], 'nothing to measure: pass --samples'),
    (['--weights=W'], '--weights needs --prompts: pass both, or --config for'),
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
