"""A run with other optimizers, from config to samples."""

import jax
import numpy as np
import pytest

from sdxl_jax import train
from sdxl_jax.checkpoints import loading, orbax_checkpoint
from sdxl_jax.models import from_config
from sdxl_jax.training import optimizer
from tests.support import tiny_config

FROZEN = 'text_encoder'


def get_config(name, total_steps=4):
  config = tiny_config.get_config()
  config.total_steps = total_steps
  config.optimizer.update(
    name=name,
    schedule='constant',
    moments_dtype='int8',
    rates=((f'{FROZEN}/.*', 0.0), ('unet/.*/kernel', 0.5)),
  )
  if name in optimizer.ESTIMATING:
    # A share of what they estimate, which grows little in four steps.
    config.optimizer.update(learning_rate=1.0, d0=1e-3)
  config.data.buckets = ((16, 16),)
  config.samples.update(every=4, steps=1, prompts=('a fox',))
  return config


def restored(workdir, average):
  config = get_config('adamw')
  nets = from_config.make_model(config)
  return loading.load_params(workdir, nets, nets.configs, average=average)


def equal(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['schedule_free_adamw', 'prodigy'])
def test_a_run_is_resumed(name, tmp_path, capsys):
  """Bit for bit, with a frozen net, moments in 8 bits, and samples."""
  straight, stopped = tmp_path / 'straight', tmp_path / 'stopped'
  assert train.train(get_config(name), straight) == 4
  assert (straight / 'samples' / '0000004.png').is_file()
  for steps in 2, 4:
    assert train.train(get_config(name, steps), stopped) == steps
  paths = [w / 'checkpoints' / '4' for w in (straight, stopped)]
  saved = [orbax_checkpoint.read_shapes(path) for path in paths]
  assert jax.tree.structure(saved[0]) == jax.tree.structure(saved[1])
  for average in 'ema', 'none':
    a, b = (restored(w, average) for w in (straight, stopped))
    assert equal(a, b)

  # The average is another, but of what is frozen, which never moved.
  ema, last = restored(straight, 'ema'), restored(straight, 'none')
  first = restored(straight / 'checkpoints' / '2', 'none')
  assert not equal(ema['unet'], last['unet'])
  assert equal(ema[FROZEN], last[FROZEN]) and equal(first[FROZEN], last[FROZEN])
  assert not equal(first['unet'], last['unet'])
  frozen = [
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(saved[0]['opt_state'])
    if f"['{FROZEN}']" in jax.tree_util.keystr(path)
  ]
  assert not frozen

  # Another optimizer cannot go on from it.
  with pytest.raises(ValueError, match='optimizer.name: .* > adamw'):
    train.train(get_config('adamw', 6), stopped)
  with pytest.raises(ValueError, match='has the state of another optimizer'):
    train.train(get_config('adamw', 6), stopped, accept_changes=True)
  assert 'parameters and EMA have moved' in capsys.readouterr().out
