"""Base and refiner on a device that does not hold all of their nets."""

import jax
import pytest

from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import (
  free_memory,
  generation,
  load_options,
  memory_estimate,
  offload_choice,
  pairs,
  pipelines,
  settings,
  sources,
)
from sdxl_jax.weights import pretrained
from tests.support import golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
REFINER = golden_sets.SETS[0] / 'tiny' / 'refiner'


@pytest.fixture(autouse=True)
def no_reserve(monkeypatch):
  """Only the arrays of tiny nets count, and each device has some of them."""
  for name in ('FIXED', 'TEXT'):
    monkeypatch.setattr(memory_estimate, name, 0)
  monkeypatch.setattr(offload_choice, 'HOST_RESERVE', 0)
  monkeypatch.setattr(free_memory, 'on_host', lambda: 2**30)


@pytest.fixture(scope='module')
def nets():
  options, _ = pipelines.resolve({}, None)
  models = [
    sources.open_source(path, options).model for path in (BASE, REFINER)
  ]
  return {net.name: net for net in offload_choice.list_nets(models, 1)}


def limit(monkeypatch, count):
  """Makes devices with so many bytes free, headroom included."""
  free = int(count / (1 - offload_choice.HEADROOM)) + 1
  monkeypatch.setattr(free_memory, 'on_devices', lambda devices: free)


def draw(base, refiner):
  settings = dict(size=(64, 64), steps=4, refiner=refiner)
  return generation.generate(base, ['a'], **settings)


def kinds(params):
  return {
    name: {x.sharding.memory_kind for x in jax.tree.leaves(tree)}
    for name, tree in params.items()
  }


def names_of(base, refiner, kind):
  """Names of the nets whose parameters are in some kind of memory."""
  found = kinds(base.params) | {
    f'refiner {name}': x for name, x in kinds(refiner.params).items()
  }
  assert {'device'} in found.values()
  return [name for name, x in found.items() if x == {kind}]


def test_some_nets_wait(monkeypatch, nets):
  total = sum(net.device_bytes for net in nets.values())
  limit(monkeypatch, 0.9 * total)
  pair = pairs.load_pair(BASE, REFINER)
  (note,) = [n for n in pair[0].notes if 'offloading' in n]
  waiting = names_of(*pair, 'pinned_host')
  assert waiting and all(name in note for name in waiting)
  assert sum(nets[name].device_bytes for name in waiting) > 0.1 * total
  assert pair[0].tile is None
  # Nets that run are copied to the device.
  params = pair[0].on_device('unet', 'text_encoder', 'text_encoder_2', 'vae')
  assert set().union(*kinds(params).values()) == {'device'}


@pytest.mark.slow
def test_some_nets_wait_and_draw_the_same(monkeypatch, nets):
  expected = draw(*pairs.load_pair(BASE, REFINER))
  limit(monkeypatch, 0.9 * sum(net.device_bytes for net in nets.values()))
  pair = pairs.load_pair(BASE, REFINER)
  assert names_of(*pair, 'pinned_host')
  for one, other in zip(draw(*pair), expected):
    assert (one == other).all()
  assert names_of(*pair, 'pinned_host')


def test_one_model(monkeypatch, nets):
  own = {n: net for n, net in nets.items() if 'refiner' not in n}
  total = sum(net.device_bytes for net in own.values())
  limit(monkeypatch, total - 1)
  base = pipelines.load(BASE)
  assert {'pinned_host'} in kinds(base.params).values()
  assert any('offloading' in note for note in base.notes)
  limit(monkeypatch, 100 * total)
  base = pipelines.load(BASE)
  assert set().union(*kinds(base.params).values()) == {'device'}
  assert not any('offloading' in note for note in base.notes)


def test_each_device_of_a_mesh_has_a_copy_in_host_memory(monkeypatch, nets):
  limit(monkeypatch, 0.9 * sum(net.device_bytes for net in nets.values()))
  mesh = device_mesh.make_mesh()
  one, four = (
    pairs.choose([(BASE, {}), (REFINER, {})], offload_choice.Workload, mesh)
    for mesh in (None, mesh)
  )
  assert four.placed.host_bytes == 4 * one.placed.host_bytes > 0


def test_named_nets_wait():
  base = pipelines.load(BASE, offload=['vae'])
  found = kinds(base.params)
  assert found.pop('vae') == {'pinned_host'}
  assert set().union(*found.values()) == {'device'}


def test_nothing_is_loaded_where_nothing_fits(monkeypatch, nets):
  limit(monkeypatch, nets['unet'].device_bytes // 2)
  monkeypatch.setattr(pretrained.Net, 'load', None)
  with pytest.raises(ValueError, match='even with all idle nets.*no refiner'):
    pairs.load_pair(BASE, REFINER)
  with pytest.raises(ValueError, match='even with all idle nets'):
    pipelines.load(BASE)


def test_tiles_are_those_of_the_pipeline(monkeypatch):
  monkeypatch.setattr(
    memory_estimate,
    'decoding',
    lambda model, size, tile, platform: 2**40 if tile is None else 0,
  )
  limit(monkeypatch, 2**38)
  base = pipelines.load(BASE)
  assert base.tile == offload_choice.TILE
  chosen = settings.SampleSettings()
  assert generation.resolve(base, chosen).tile == offload_choice.TILE
  chosen = settings.SampleSettings(tile=64)
  assert generation.resolve(base, chosen).tile == 64


@pytest.mark.parametrize('value', ['some', 'unet', ['unit']])
def test_another_value_of_offload(value):
  with pytest.raises(
    ValueError, match="^offload is .*; pass 'auto', True, Fal"
  ):
    load_options.parse({'offload': value})
