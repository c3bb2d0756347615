"""Files of an earlier tree: each is read and gives the numbers it gave then.

tests/golden/compat/README.md lists the files and the commands that wrote them.
The numbers were computed with XLA's usual optimization; the limits hold as well
in this process, whose programs are compiled without it (tests/conftest.py).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sdxl_jax import evaluate, precompute, sample, train
from tests.support import (
  autoencoder_config,
  golden_sets,
  tiny_config,
  xla_flags,
)

COMPAT = golden_sets.GOLDEN / 'compat'
LATENTS = 1e-5  # largest error over largest value
LOSSES = 2e-6  # relative: all six digits that metrics.jsonl has
DIGIT = 1e-5  # relative: one unit in the last of six digits
QUALITY = 1e-4  # relative: SSIM is a quotient of small differences


@pytest.fixture(scope='module')
def compat(tmp_path_factory):
  """A copy of the files, since commands write to the folders they read."""
  return shutil.copytree(COMPAT, tmp_path_factory.mktemp('compat') / 'files')


@pytest.fixture(scope='module')
def expected():
  return json.loads((COMPAT / 'expected.json').read_text())


def saved_config(config, folder, **changes):
  """The config of a workdir, as it was saved there.

  Args:
    config: what has the fields that were not known then.
    folder: the workdir.
    **changes: fields of the result.
  """
  saved = json.loads((folder / 'config.json').read_text())
  config.update(saved)
  config.update(changes)
  return config


def check_metrics(workdir, expected, limit):
  """Compares metrics.jsonl with {step: {metric: value}}."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = {str(line['step']): line for line in map(json.loads, lines)}
  for step, values in expected.items():
    for name, value in values.items():
      assert found[step][name] == pytest.approx(value, rel=limit), (step, name)


def run_sample(folder, *flags):
  """Runs `sample` in a folder, to which the paths in its files are relative."""
  variables = {
    'PYTHONPATH': str(golden_sets.GOLDEN.parent.parent),
    # One device, as the files were written with.
    'XLA_FLAGS': xla_flags.flags(devices=1),
  }
  command = [sys.executable, '-m', 'sdxl_jax.sample', *map(str, flags)]
  done = subprocess.run(
    command,
    cwd=folder,
    env=os.environ | variables,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  'file, average, sampler',
  [
    ('run_latents.npy', 'ema', 'euler'),
    ('run_last_latents.npy', 'none', 'dpmpp_2m'),
  ],
)
def test_a_run_is_sampled(compat, close, file, average, sampler):
  pipeline = sample.load(str(compat / 'run'), average=average)
  _, latents = sample.generate(
    pipeline,
    ['a fish on a pink background'],
    steps=5,
    sampler=sampler,
    guidance_scale=3.0,
    seeds=[7],
    size=(16, 24),
  )
  close(latents, np.load(compat / file), LATENTS)


def test_a_png_is_sampled_again(compat, close, tmp_path):
  """Takes the models, 31 settings and the initial image from a PNG's text."""
  run_sample(
    compat,
    '--from_png=fox.png',
    f'--output={tmp_path / "again.png"}',
    f'--save_latents={tmp_path / "again.npy"}',
  )
  latents = np.load(tmp_path / 'again.npy')
  close(latents, np.load(compat / 'fox_latents.npy'), LATENTS)
  with (
    Image.open(compat / 'fox.png') as old,
    Image.open(tmp_path / 'again.png') as new,
  ):
    old_text, new_text = (json.loads(i.text['sdxl_jax']) for i in (old, new))
    old_pixels, new_pixels = np.int32(old), np.int32(new)
  # The present tree has more options of the models.
  for old, new in (
    (old_text.pop('models'), new_text['models']),
    (old_text, new_text),
  ):
    assert {name: new[name] for name in old} == old
  # The present tree enlarges by the run's config.samples.zoom.
  assert old_pixels.shape == (16, 24, 3) and new_pixels.shape == (48, 72, 3)
  enlarged = old_pixels.repeat(3, 0).repeat(3, 1)
  assert np.abs(enlarged - new_pixels).max() <= 1  # of 255, by rounding


def test_a_prompts_file_is_sampled(compat, close, tmp_path):
  """Reads the settings of each of three lines."""
  run_sample(
    compat,
    '--weights=run',
    '--prompts_file=prompts.jsonl',
    f'--output={tmp_path / "{i}.png"}',
    f'--save_latents={tmp_path / "all.npy"}',
  )
  latents = np.load(tmp_path / 'all.npy')
  close(latents, np.load(compat / 'prompts_latents.npy'), LATENTS)


def test_a_run_is_resumed(compat, expected, tmp_path):
  """Restores parameters, Adam's moments and the position in the data."""
  workdir = shutil.copytree(compat / 'run', tmp_path / 'run')
  config = saved_config(tiny_config.get_config(), workdir, total_steps=6)
  assert train.train(config, workdir) == 6
  check_metrics(workdir, expected['run, resumed'], LOSSES)


def test_an_autoencoder_is_resumed_and_started_from(compat, expected, tmp_path):
  """Restores both optimizers; then takes both nets' EMA as `init_from`."""
  workdir = shutil.copytree(compat / 'autoencoder', tmp_path / 'autoencoder')
  load_config = autoencoder_config.get_config
  config = saved_config(load_config(), workdir, total_steps=4)
  assert train.train(config, workdir) == 4
  check_metrics(workdir, expected['autoencoder, resumed'], DIGIT)
  # Equal but for where it starts, so that no other program is compiled.
  config.update(init_from=str(compat / 'autoencoder'), from_scratch=())
  assert train.train(config, tmp_path / 'started') == 4
  check_metrics(tmp_path / 'started', expected['autoencoder, started'], DIGIT)


def test_an_autoencoder_is_evaluated(compat, expected, tmp_path):
  folder = compat / 'autoencoder'
  config = saved_config(autoencoder_config.get_config(), folder)
  metrics = evaluate.evaluate(config, str(folder), tmp_path, num_images=8)
  for name, value in expected['autoencoder, evaluated'].items():
    assert metrics[name] == pytest.approx(value, rel=QUALITY), name


def cache_config(folder):
  """The config that `cache` was computed by, where `run` is in the folder."""
  config = saved_config(tiny_config.get_config(), folder, init_from='run')
  config.data.scenes.length = 24
  return config


def test_a_cache_is_complete(compat, monkeypatch):
  """Finds nothing left to compute: all files keep their bytes and times."""
  folder = compat / 'cache'

  def read():
    return {path.name: path.read_bytes() for path in folder.iterdir()}

  def times():
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

  files, written = read(), times()
  sums = [line.split() for line in files['SHA256SUMS'].decode().splitlines()]
  assert len(sums) == 3
  for digest, name in sums:
    assert hashlib.sha256(files[name]).hexdigest() == digest, name
  monkeypatch.chdir(compat)
  config, lines = cache_config(compat / 'run'), []
  precompute.precompute(config, 'cache', say=lines.append)
  assert 'cache: an earlier version wrote it' in lines[-2]
  assert 'cache is finished' in lines[-1]
  with pytest.raises(ValueError, match='another cache.*\n  crops: 1 > 2\n'):
    precompute.precompute(config, 'cache', crops=2)
  assert read() == files and times() == written


def test_a_cache_is_trained_on(compat, expected, tmp_path, monkeypatch, capsys):
  """Trains low-rank factors, which compile in half the time of a whole UNet.

  Gradients of those of cross-attention depend on the cached text at first
  order, where the loss of a hardly trained UNet does not.
  """
  monkeypatch.chdir(compat)
  config = cache_config(compat / 'run')
  config.update(total_steps=2, trained=('lora',))
  config.data.update(source='precomputed', precomputed={'path': 'cache'})
  with config.unlocked():
    config.lora.attention = dict(
      layers=r'unet/mid.*/attn2/to_(v|out_0)', rank=2, alpha=2.0
    )
  assert train.train(config, tmp_path) == 2
  check_metrics(tmp_path, expected['cache, trained on'], DIGIT)
  assert 'it cannot be checked against images' in capsys.readouterr().out
