"""The bar of loading ends where it should."""

import jax
import numpy as np
import pytest
import tqdm

from sdxl_jax.weights import net_loading
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import folders, golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'


@pytest.fixture(scope='module')
def nets():
  """An autoencoder in tensors, and one in a tree of our own."""
  read = folder_reader.open_net(BASE / 'vae', 'vae')
  config, params = read.load(param_dtype='bfloat16')
  return {'read': read, 'restored': folders.net_of('vae', config, params)}


def load(nets):
  fields = dict.fromkeys(nets, {'param_dtype': 'bfloat16'})
  shards = dict.fromkeys(nets, lambda target: target)
  return net_loading.load_all(nets, shards, fields)


def test_the_bar_counts_all_bytes(nets, monkeypatch):
  bars = []

  class Bar(tqdm.tqdm):
    def __init__(self, **settings):
      super().__init__(**settings)
      bars.append(self)

  monkeypatch.setattr(net_loading.tqdm, 'tqdm', Bar)
  loaded = load(nets)
  (bar,) = bars
  leaves = jax.tree.leaves([params for _, params in loaded.values()])
  assert bar.n == bar.total == sum(x.nbytes for x in leaves) > 0
  (_, read), (_, restored) = loaded.values()
  jax.tree.map(np.testing.assert_array_equal, read, restored)


@pytest.mark.parametrize('delay', [0, 1000])
def test_what_loads_soon_shows_no_bar(nets, monkeypatch, capfd, delay):
  monkeypatch.setattr(net_loading, 'DELAY', delay)
  load(nets)
  assert ('loading: 100%' in capfd.readouterr().err) == (delay == 0)
