"""The losses of validation: their means, and the same on any devices."""

import contextlib

import jax
import numpy as np
import pytest

from configs import default, tiny
from sdxl_jax.data import dataset
from sdxl_jax.data.validation_records import HELD_OUT, TRAINED, Record
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config
from sdxl_jax.training import (
  run_setup,
  tasks,
  validation,
  validation_share,
)
from tests.support import autoencoder_config, random_params, tiny_config

WIDE, SQUARE = (16, 24), (16, 16)


def record(group, bucket=SQUARE):
  return Record(group, '', None, 0, 0, bucket)


def losses():
  """Losses of three records held out and two that are not; one unreadable."""
  records = [
    record(HELD_OUT),
    record(HELD_OUT, WIDE),
    record(HELD_OUT),
    record(TRAINED),
    record(TRAINED, WIDE),
    record(TRAINED),
  ]
  values = np.array([1.0, 4, np.nan, 2, 1, 3], np.float32)
  padded = np.append(values, [np.nan, np.nan])
  readable = np.array([True, True, False, True, True, True, False, False])
  return validation.Losses.of(
    [(records, {'loss': padded, 'loss_t0': 2 * padded}, readable)]
  )


def test_means():
  found = losses().metrics()
  assert found == {
    'loss': 2.5,
    'loss_t0': 5.0,
    'trained_loss': 2.0,
    'gap': 0.5,
  }


def test_means_of_buckets():
  found = losses().metrics(by_bucket=True)
  assert found['loss_16x16'] == 1.0 and found['gap_16x16'] == -1.5
  assert found['loss_16x24'] == 4.0 and found['gap_16x24'] == 3.0


def test_without_records_of_a_group():
  results = [([record(HELD_OUT)], {'loss': np.ones(2)}, np.ones(2, bool))]
  assert validation.Losses.of(results).metrics() == {'loss': 1.0}
  results = [([record(TRAINED)], {'loss': np.ones(1)}, np.ones(1, bool))]
  assert 'loss' not in validation.Losses.of(results).metrics(True)


def get_config():
  config = tiny_config.get_config()
  config.data.buckets = (SQUARE,)
  config.data.scenes.length = 100
  config.validation.update(share=0.1, records=7)
  return config


@pytest.fixture(scope='module')
def params():
  """Random parameters of all nets, so that nothing is 0."""
  model = from_config.make_model(get_config())
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  return random_params.draw(ones)


def make(config, mesh, rows):
  model = from_config.make_model(config)
  return validation.make(
    config,
    tasks.make_task(config, model),
    mesh,
    frozen={},
    split=dataset.make_split(config, list),
    tokenize=run_setup.load_tokenizer(config),
    rows=rows,
  )


def test_devices_and_batches_do_not_matter(params):
  """Nor does how parameters are sharded; each bucket has one program."""
  found = []
  for devices, rows, fsdp in ((1, 3, 1), (4, 8, 2)):
    mesh = device_mesh.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])
    validator = make(get_config(), mesh, rows)
    spec = validator.specs[SQUARE]['image']
    assert spec.shape[0] == {1: 3, 4: 8}[devices]
    places = sharding.tree_shardings(params, mesh)
    placed = jax.device_put(params, places)
    last = jax.device_put(jax.tree.map(lambda x: 1.01 * x, params), places)
    losses = validator.measure({'ema': placed, 'last': last})
    assert validator._program._cache_size() == 1
    assert losses['ema'].metrics() != losses['last'].metrics()
    found.append(losses['ema'])
  one, four = found
  hashes, others = ([r.hash for r in x.records] for x in (one, four))
  assert hashes == others and len(hashes) == 14
  for name, values in one.values.items():
    np.testing.assert_allclose(four.values[name], values, rtol=1e-4)
  levels = [one.values[f'loss_t{t}'] for t in range(0, 1000, 125)]
  np.testing.assert_allclose(np.mean(levels, 0), one.values['loss'], rtol=1e-6)


def test_nothing_is_measured_where_it_is_interrupted(params):
  mesh = device_mesh.make_mesh(devices=jax.devices()[:1])
  validator = make(get_config(), mesh, 3)
  found = validator.measure({'ema': params}, interrupted=lambda: True)
  assert found is None


def test_nothing_is_held_out():
  config = get_config()
  config.validation.share = 0.0
  assert make(config, None, 3) is None
  config.validation.share = 1e-9
  assert make(config, None, 3) is None


@contextlib.contextmanager
def shapes_of(config):
  """Yields the shapes that `validate` of a config returns."""
  model = from_config.make_model(config, 'cpu')
  task = tasks.make_task(config, model)
  params = jax.eval_shape(model.init, jax.random.key(0))
  bucket = tuple(config.data.buckets[0])
  batch = task.batch_spec(bucket)
  rows = len(batch['target_size'])
  batch['key'] = jax.ShapeDtypeStruct((rows, 2), np.uint32)
  yield jax.eval_shape(task.validate, params, {}, batch), rows


def test_the_refiner_has_timesteps_of_its_own():
  config = tiny.get_config('refiner')
  config.vae.scaling_factor = 1.0
  with shapes_of(config) as (found, rows):
    names = {f'loss_t{t}' for t in range(0, 200, 25)}
    assert found.keys() == names | {'loss'}
    assert all(x.shape == (rows,) for x in found.values())


@pytest.mark.parametrize('masked', [False, True])
def test_precomputed_batches(masked):
  config = tiny_config.get_config()
  config.schedule.zero_terminal_snr = False
  config.data.source = 'precomputed'
  config.loss.masked_loss = masked
  config.schedule.prediction = 'flow'
  config.validation.timesteps = 2
  with shapes_of(config) as (found, rows):
    assert found.keys() == {'loss', 'loss_t0', 'loss_t500'}
    assert found['loss'].shape == (rows,)


@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_an_autoencoder_has_the_loss_of_its_reconstructions(weight):
  config = autoencoder_config.get_config()
  config.autoencoder.perceptual_weight = weight
  with shapes_of(config) as (found, rows):
    assert found.keys() == {'loss', 'l1'} | ({'lpips'} if weight else set())
    assert found['loss'].shape == (rows,)


def test_the_share_of_a_run_stays():
  """Whatever its data are now; earlier versions held out nothing."""
  config = default.get_config()
  assert validation_share.of_run(config, None).validation.share is None
  earlier = {'validation': {'share': 0.002}}
  assert validation_share.of_run(config, earlier).validation.share == 0.002
  assert validation_share.of_run(config, {}).validation.share == 0.0
  config.validation.share = 0.1  # the config's own, which may be refused
  assert validation_share.of_run(config, earlier).validation.share == 0.1
