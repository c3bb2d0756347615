"""Tests that a cache holds what the nets compute, also after interruptions."""

import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from sdxl_jax import precompute
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import (
  batch_rows,
  buckets,
  images,
  pipeline,
  precompute_writer,
  transforms,
)
from sdxl_jax.data.sources import kinds, precomputed
from sdxl_jax.models import from_config
from sdxl_jax.text import tokenizer
from sdxl_jax.training import diffusion_task, folder_lock, run_setup
from tests.data import conditions_test
from tests.support import caches, datasets, processes, published_config

SIZES = ((40, 60), (60, 40), (36, 90), (32, 48), (80, 48), (50, 50), (48, 72))
BUCKETS = caches.BUCKETS
OPTIONS = dict(crops=3, flips=True, dtype='float16', shard_size=2)


def write_images(folder, text='picture'):
  """Writes an image of each size; returns the folder's path."""
  examples = [
    datasets.example(i, size, text=f'{text} {i}')
    for i, size in enumerate(SIZES)
  ]
  return datasets.write_folder(folder, examples)['path']


@pytest.fixture(scope='module')
def random_params():
  """Parameters of the config's text encoders; its autoencoder has none."""
  model = from_config.make_model(caches.config_of('x'))
  return model.text.init(jax.random.key(0))


@pytest.fixture
def random_weights(monkeypatch, random_params):
  monkeypatch.setattr(loading, 'load_params', loader(random_params))


def loader(params):
  """Makes a loading.load_params of these parameters."""

  def load_params(source, model, names, mesh=None, **options):
    return {name: params[name] for name in names}

  return load_params


def open_cache(folder, dtype='float16'):
  """Opens a cache without its unreadable images."""
  settings = {'path': folder, 'dtype': dtype}
  return kinds.make_source('precomputed', settings, say=lambda line: None)


def read(folder, batch_size=4, table=BUCKETS, dtype='bfloat16', **options):
  """Makes batches from a cache."""
  settings = {
    'path': folder,
    'dtype': dtype,
    'max_token_length': options.get('max_token_length', 75),
  }
  options = batch_rows.BatchOptions(**{'num_threads': 1} | options)
  source = kinds.make_source('precomputed', settings, say=lambda line: None)
  schedule = buckets.Schedule(source.sizes, table, 0, batch_size)
  return pipeline.make_batches(
    source, None, schedule, range(batch_size), options
  )


@pytest.fixture(scope='module')
def first_cache(tmp_path_factory, random_params):
  """A cache that tests copy, its config, and the lines reported."""
  folder = tmp_path_factory.mktemp('first')
  config = caches.config_of(write_images(folder / 'images'))
  (folder / 'images' / '0003.png').write_bytes(b'no image')
  path = folder / 'images' / '0005.png'
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loading, 'load_params', loader(random_params))
    precompute.precompute(config, folder / 'cache', **OPTIONS, say=lines.append)
  return folder / 'cache', config, lines


@pytest.fixture
def cache(tmp_path, first_cache, random_weights):
  """Makes a cache of images, two of which are broken, one in its header.

  Returns its folder, a function that makes another, and the lines reported.
  """
  folder, config, lines = first_cache
  lines = list(lines)

  def make(folder, **options):
    precompute.precompute(config, folder, **OPTIONS | options, say=lines.append)

  return shutil.copytree(folder, tmp_path / 'cache'), make, lines


def test_conditions_are_true(cache):
  """The sizes and crops of a batch are those of its pixels."""
  model = from_config.make_model(caches.config_of('x'))
  batches = read(cache[0], dtype='float16', flip_probability=0.5)
  variants, flips = set(), 0
  for _ in range(30):
    bucket, batch = next(batches)
    keys = {'moments', 'context', 'pooled'}
    assert set(batch) == keys | {
      'original_size',
      'crop_top_left',
      'target_size',
    }
    mean = np.split(np.asarray(batch['moments'], np.float32), 2, -1)[0]
    for row, image in enumerate(model.decode({}, mean)):
      size, crop = batch['original_size'][row], batch['crop_top_left'][row]
      resized = transforms.cover(size, bucket)
      number, top, left, mirrored = conditions_test.read_ramp(image, resized)
      assert tuple(size) == SIZES[number]
      assert tuple(batch['target_size'][row]) == image.shape[:2] == bucket
      assert abs(top - crop[0]) < 0.7 and abs(left - crop[1]) < 0.7
      variants.add((number, mirrored, tuple(crop)))
      flips += mirrored
  batches.close()
  assert {number for number, _, _ in variants} == {0, 1, 2, 4, 6}
  for mirrored in (False, True):
    crops = {crop for *key, crop in variants if key == [2, mirrored]}
    assert len(crops) > 1
  assert 30 < flips < 90


def test_text_and_the_empty_caption(cache, random_params):
  folder, *_ = cache
  config = caches.config_of('x')
  model = from_config.make_model(config)
  tokenize = tokenizer.load(None)

  def encode(text):
    return model.text.encode(random_params, tokenize([text]))

  source = open_cache(folder)
  for i in range(len(source)):
    context, pooled = encode(source[i]['caption'])
    np.testing.assert_allclose(
      source[i]['text']['context'], context[0], 2e-3, 2e-3
    )
    np.testing.assert_allclose(
      source[i]['text']['pooled'], pooled[0], 2e-3, 2e-3
    )
  context, pooled = encode('')
  uncond = source.source.uncond
  np.testing.assert_allclose(uncond['context'], context[0], 2e-3, 2e-3)
  dropped = read(folder, dtype='float16', caption_dropout=1.0)
  _, batch = next(dropped)
  dropped.close()
  assert (batch['context'] == uncond['context']).all()
  assert (batch['pooled'] == uncond['pooled']).all()


def test_broken_images_are_named(cache):
  folder, _, lines = cache
  source = open_cache(folder)
  assert len(source) == len(SIZES) - 2 and len(source.source) == len(SIZES) - 1
  assert '0005.png' in next(source.left_out())
  assert '0005.png' in (folder / 'left_out.txt').read_text()
  assert '1  left out: its header cannot be read' in lines[0]
  assert '5 records in ' in lines[-1] and '1 left out' in lines[-1]
  assert '0005.png: not a readable image' in lines[-1]


def test_sums(cache):
  done = subprocess.run(['sha256sum', '-c', 'SHA256SUMS'], cwd=cache[0])
  assert done.returncode == 0


def test_finished_and_another_cache(cache):
  folder, make, lines = cache
  before = caches.contents(folder)
  make(folder)
  assert lines[-1] == f'{folder} is finished'
  with pytest.raises(ValueError, match=r'another cache.*\n  crops: 3 > 2\n'):
    make(folder, crops=2)
  assert caches.contents(folder) == before


def test_a_second_command(cache, monkeypatch):
  """Is refused before it loads a net while another writes to the folder."""
  folder, make, _ = cache
  before = caches.contents(folder)
  monkeypatch.setattr(run_setup, 'set_up_locally', None)
  lock = folder_lock.FolderLock(folder, '--output')
  lock.acquire(print)
  message = f'in use by process {os.getpid()} on .* pass another --output'
  with pytest.raises(ValueError, match=message):
    make(folder)
  lock.release()
  assert caches.contents(folder) == before


def test_continuing_gives_the_same_bytes(cache, tmp_path, monkeypatch):
  """After an error in the second shard, and half of a file left behind."""
  folder, make, _ = cache
  write, broken = precompute_writer.write_rows, tmp_path / 'broken'
  written = []

  def fail_once(path, rows):
    written.append(path)
    if len(written) == 2:
      path.with_name(f'{path.name}.partial').write_bytes(b'half')
      path.with_name(f'.{path.name}.0123.partial').write_bytes(b'half')
      raise OSError('No space left on device')
    write(path, rows)

  with monkeypatch.context() as patch:
    patch.setattr(precompute_writer, 'write_rows', fail_once)
    with pytest.raises(OSError, match='No space left.*\n.* same command again'):
      make(broken)
  assert len(list(broken.glob('*.array_record'))) == 1
  with pytest.raises(FileNotFoundError, match='no finished cache'):
    precomputed.Precomputed(broken)
  make(broken)
  assert caches.contents(broken) == caches.contents(folder)


@pytest.mark.parametrize(
  'weights', ['random', pytest.param('published', marks=pytest.mark.slow)]
)
def test_an_update_gives_the_same_bytes(tmp_path, request, weights):
  """By real nets, in batches of other images than those of a new cache."""
  images, lines = tmp_path / 'images', []
  write_images(images)
  config = caches.config_of(images)
  if weights == 'random':
    request.getfixturevalue('random_weights')
  else:
    config = published_config.get_config()
    config.data.update(source='folder', folder={'path': str(images)})

  def make(name):
    precompute.precompute(config, tmp_path / name, say=lines.append)

  make('updated')
  # Another caption, and another image.
  examples = [datasets.example(i, size) for i, size in enumerate(SIZES)]
  examples[0]['text'] = 'another caption'
  examples[6]['image'] = datasets.example(19, SIZES[6])['image']
  datasets.write_folder(images, examples)
  make('updated')
  assert '5 kept, 2 changed' in lines[-3]
  make('fresh')
  updated, fresh = (
    caches.contents(tmp_path / name) for name in ('updated', 'fresh')
  )
  assert updated == fresh


def make_command(folder, *flags):
  """Writes images, and returns a module and its flags to precompute them."""
  return [
    'sdxl_jax.precompute',
    '--config=tests/support/published_config.py',
    '--config.data.source=folder',
    f'--config.data.folder.path={write_images(folder / "images")}',
    *flags,
  ]


@pytest.mark.slow
def test_killed_and_continued(tmp_path):
  """By SIGKILL, in a process of its own."""
  command = [sys.executable, '-m', *make_command(tmp_path, '--shard_size=1')]

  def run(name):
    return subprocess.Popen([*command, '--output', tmp_path / name])

  def shards():
    return list((tmp_path / 'killed').glob('*-*.array_record'))

  first = run('killed')
  while not shards() and first.poll() is None:
    time.sleep(0.01)
  first.send_signal(signal.SIGKILL)
  assert first.wait() == -signal.SIGKILL and 0 < len(shards()) < len(SIZES)
  assert run('killed').wait() == run('uninterrupted').wait() == 0
  assert caches.contents(tmp_path / 'killed') == caches.contents(
    tmp_path / 'uninterrupted'
  )


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
  command = make_command(tmp_path, '--shard_size=1', '--crops=2')
  for count in (1, 2):
    logs = [tmp_path / f'{count}-{i}.log' for i in range(count)]
    output = ['--output', str(tmp_path / str(count))]
    started = processes.start([*command, *output], logs)
    assert all(p.wait(300) == 0 for p in started), logs[0].read_text()
  assert caches.contents(tmp_path / '2') == caches.contents(tmp_path / '1')


def test_weights_must_be_given(tmp_path):
  config = caches.config_of(write_images(tmp_path / 'images'))
  with pytest.raises(ValueError, match='init_from is empty.*text_encoder_2'):
    precompute.precompute(config, tmp_path / 'cache')


@pytest.mark.parametrize(
  'words, length', [(1, 75), pytest.param(100, 150, marks=pytest.mark.slow)]
)
def test_loss_is_that_of_pixels(tmp_path, words, length):
  """For the same noise, within the error of storing in bfloat16."""
  config = published_config.get_config()
  config.max_token_length = length
  config.data.source = 'folder'
  text = 'picture ' * words
  config.data.folder.path = write_images(tmp_path / 'images', text)
  precompute.precompute(config, tmp_path / 'cache', say=print)
  model = from_config.make_model(config)
  params = loading.load_params(config.init_from, model, model.configs)
  of_model = diffusion_task.DiffusionLoss(model)
  loss = jax.jit(of_model.loss)
  source = kinds.make_source('folder', {'path': config.data.folder.path})
  tokenize = tokenizer.load(config.init_from)
  batches = read(tmp_path / 'cache', max_token_length=length)
  bucket, stored = next(batches)
  assert stored['context'].shape[1] == length // 75 * 77
  batches.close()
  wanted = list(map(tuple, stored['original_size']))
  examples = [source[SIZES.index(size)] for size in wanted]
  crops = []
  for example, (top, left) in zip(examples, stored['crop_top_left']):
    image = transforms.open_image(example, bucket)
    size = transforms.cover(example['original_size'], bucket)
    resized = np.asarray(images.resize(image, size))
    crop = resized[top : top + bucket[0], left : left + bucket[1]]
    crops.append(images.to_float(crop))
  pixels = {k: v for k, v in stored.items() if v.ndim == 2 and v.shape[1] == 2}
  pixels['image'] = np.stack(crops)
  captions = [example['caption'] for example in examples]
  pixels['tokens'], cut = tokenize.captions(captions, length // 75)
  assert not any(cut)
  for seed in range(3):
    key = jax.random.key(seed)
    a, b = (float(loss(params, {}, x, key)[0]) for x in (stored, pixels))
    assert 0 < abs(a / b - 1) < 3e-3


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'dtype': 'bfloat16'}, 'stored in float16, but .*dtype is bfloat16'),
    ({'table': ((32, 48), (48, 40))}, 'precomputed for the bucket .*48, 32'),
    ({'max_token_length': 150}, 'captions of up to 75 tokens, .*set it to 75'),
  ],
)
def test_a_cache_of_another_config(cache, settings, message):
  with pytest.raises(ValueError, match=message):
    batches = read(cache[0], **{'dtype': 'float16'} | settings)
    for _ in range(4):
      next(batches)


def test_a_missing_shard_and_flips(cache):
  folder, make, _ = cache
  make(folder.parent / 'plain', flips=False)
  with pytest.raises(ValueError, match='not precomputed: .* with --flips'):
    next(read(folder.parent / 'plain', dtype='float16', flip_probability=1.0))
  next(folder.glob('*-*.array_record')).unlink()
  with pytest.raises(ValueError, match='shards are missing, see sha256sum'):
    read(folder, dtype='float16')
