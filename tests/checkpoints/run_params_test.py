"""Restoring EMA or last parameters of checkpoints without their optimizer."""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import optax
import pytest

from sdxl_jax.checkpoints import orbax_checkpoint, run_params
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.ema import transform
from tests.support import autoencoder_config, random_runs, tiny_config

WIDTHS = (0.05, 0.1)
LORA = {'linear': dict(layers=r'unet/.*/to_[qkv]', rank=2, alpha=4.0)}


def lora_config():
  """The config of a run that trains low-rank factors alone."""
  config = tiny_config.get_config().unlock()
  config.update(init_from='somewhere', trained=('lora',), lora=LORA)
  return config.lock()


CONFIGS = {
  'nets': tiny_config.get_config,
  'autoencoder': autoencoder_config.get_config,
  'lora': lora_config,
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A saved run."""

  folder: object  # of its checkpoint
  state: object  # that was saved

  def ema(self, which=0):
    return transform.ema_params(self.state.opt_state, which)


@pytest.fixture(scope='module')
def saved_runs(tmp_path_factory):
  """(kind) -> a run of that kind, with EMAs of two widths; saved once."""

  @functools.cache
  def save(kind):
    config, workdir = CONFIGS[kind](), tmp_path_factory.mktemp(kind)
    config.optimizer.ema_widths = WIDTHS
    state = random_runs.save(config, workdir)
    return Run(orbax_checkpoint.find(workdir), state)

  return save


@pytest.fixture(params=CONFIGS)
def run(request, saved_runs):
  """A run of every kind."""
  return saved_runs(request.param)


@pytest.fixture
def small_run(saved_runs):
  """The run with the fewest arrays."""
  return saved_runs('lora')


def check_equal(actual, expected, tolerance=0.0):
  """Asserts that {net: tree} are equal."""
  assert actual.keys() == expected.keys()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, tolerance, tolerance),
    actual,
    expected,
  )


@pytest.mark.parametrize('which', [0, 1])
def test_ema_of_a_width(saved_runs, which):
  """Snapshots are float16; one of the same step and width is taken as it is."""
  run = saved_runs('autoencoder')
  params = run_params.restore(run.folder, None, ['vae'], str(WIDTHS[which]))
  check_equal(params, {'vae': run.ema(which)['vae']}, 2e-3)
  with pytest.raises(AssertionError):
    check_equal(params, {'vae': run.ema(1 - which)['vae']}, 2e-3)


@pytest.mark.parametrize('average', ['ema', 'none'])
def test_only_the_nets_that_are_named_are_read(run, average, monkeypatch):
  requested = []
  restore_items = orbax_checkpoint.restore_items

  def record(folder, items):
    leaves = jax.tree.leaves(items['state'].item)
    requested.extend(x for x in leaves if hasattr(x, 'shape'))
    return restore_items(folder, items)

  monkeypatch.setattr(orbax_checkpoint, 'restore_items', record)
  *others, name = list(run.state.params)
  params = run_params.restore(run.folder, None, [name], average)
  source = run.ema() if average == 'ema' else run.state.params
  check_equal(params, {name: source[name]})
  assert len(requested) == len(jax.tree.leaves(source[name]))
  if others:
    params = run_params.restore(run.folder, None, others, average)
    check_equal(params, {name: source[name] for name in others})


@pytest.mark.parametrize('average', ['ema', 'none', '0.05'])
def test_onto_a_mesh(small_run, average):
  mesh = device_mesh.make_mesh(2, 2, devices=jax.devices()[:4])
  name = list(small_run.state.params)[0]
  params = run_params.restore(small_run.folder, mesh, [name], average)
  target = sharding.with_shardings({name: small_run.state.params[name]}, mesh)
  for x, shape in zip(jax.tree.leaves(params), jax.tree.leaves(target)):
    assert x.sharding.is_equivalent_to(shape.sharding, x.ndim)
  assert not all(x.is_fully_replicated for x in jax.tree.leaves(params))
  source = small_run.state.params if average == 'none' else small_run.ema()
  check_equal(params, {name: source[name]}, 2e-3 if average == '0.05' else 0)


def test_offloaded_to_the_host(small_run):
  mesh = device_mesh.make_mesh(2, 2, devices=jax.devices()[:4])
  names = list(small_run.state.params)
  params = run_params.restore(small_run.folder, mesh, names, offload=True)
  check_equal(params, small_run.ema())
  host = {jax.local_devices(backend='cpu')[0]}
  assert all(x.devices() == host for x in jax.tree.leaves(params))


@pytest.mark.parametrize('average', ['ema', 'none', '0.05'])
def test_a_net_that_was_not_trained(small_run, average):
  message = (
    f'has parameters of {", ".join(sorted(small_run.state.params))}, and none'
  )
  with pytest.raises(ValueError, match=message):
    run_params.restore(small_run.folder, None, ['tokenizer'], average)


def test_averages_that_do_not_exist(small_run):
  with pytest.raises(ValueError, match=r"'EMA'.*\['ema', 'none'\], or the wi"):
    run_params.restore(
      small_run.folder, None, list(small_run.state.params), 'EMA'
    )
  with pytest.raises(ValueError, match='sigma_rel is 0.4; .* at most 0.289'):
    run_params.restore(
      small_run.folder, None, list(small_run.state.params), '0.4'
    )


def test_without_ema_or_snapshots(tmp_path):
  params = {'unet': {'kernel': np.arange(6.0).reshape(2, 3)}}
  # ScaleByAdamState has a count, too, and no `params`.
  optimizer = optax.adam(0.1)
  state = {
    'step': np.int32(1),
    'params': params,
    'opt_state': optimizer.init(params),
  }
  random_runs.save_state(state, tiny_config.get_config(), tmp_path)
  folder = orbax_checkpoint.find(tmp_path)
  check_equal(run_params.restore(folder, None, ['unet'], 'none'), params)
  with pytest.raises(ValueError, match="no EMA: use average 'none'"):
    run_params.restore(folder, None, ['unet'])
  with pytest.raises(ValueError, match='no snapshots'):
    run_params.restore(folder, None, ['unet'], '0.05')


def test_the_first_ema_of_several(tmp_path):
  """The one that ema.transform.ema_params takes: depth first."""
  params = {'unet': {'kernel': np.arange(6.0)}}
  deep = optax.chain(optax.chain(optax.adam(0.1), transform.ema(0.9)))
  both = optax.chain(deep, transform.ema(0.5)).init(params)
  marked = iter(range(100))
  both = jax.tree.map(lambda x: x + next(marked), both)
  state = {'step': np.int32(1), 'params': params, 'opt_state': both}
  random_runs.save_state(state, tiny_config.get_config(), tmp_path)
  restored = run_params.restore(orbax_checkpoint.find(tmp_path), None, ['unet'])
  check_equal(restored, transform.ema_params(both))


@pytest.mark.parametrize('item', ['state', 'config'])
def test_a_broken_checkpoint(tmp_path, item):
  random_runs.save(lora_config(), tmp_path)
  folder = orbax_checkpoint.find(tmp_path)
  for path in (folder / item).iterdir():
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  with pytest.raises(ValueError, match='checkpoint .*/1 '):
    if item == 'state':
      run_params.restore(folder, None, ['lora'])
    else:
      orbax_checkpoint.read_config(folder)
