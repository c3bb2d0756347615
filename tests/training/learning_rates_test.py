"""Rates of parts: which rule counts, what is refused, what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.models import from_config
from sdxl_jax.training import (
  config_validation,
  learning_rates,
  optimizer,
  tasks,
)
from tests.support import autoencoder_config, tiny_config

PARAMS = {
  'unet': {'a': {'kernel': jnp.ones(2)}, 'b': {'kernel': jnp.ones(2)}},
  'text_encoder': {'c': {'kernel': jnp.ones(2)}},
}


def test_the_first_rule_that_matches_counts():
  rules = (('unet/a/.*', 0.5), ('unet/.*', 2.0))
  paths = 'unet/a/kernel', 'unet/b/kernel', 'text_encoder/c/kernel'
  found = [learning_rates.factor(rules, path) for path in paths]
  assert found == [0.5, 2.0, 1.0]
  # A pattern matches the whole path.
  assert learning_rates.factor((('unet', 0.5),), paths[0]) == 1.0


@pytest.mark.parametrize('name', optimizer.NAMES)
def test_updates_are_multiplied(name):
  """By the factor, whatever the optimizer; of schedule-free those of z."""

  def step(rules):
    chain = optimizer.make(
      name, lambda _: 1.0, optimizer.Settings(rules=rules, weight_decay=0.1)
    )
    params = jax.tree.map(lambda x: jnp.full((2, 2), 3.0), PARAMS)
    gradients = jax.tree.map(jnp.ones_like, params)
    return chain.update(gradients, chain.init(params), params)[0]

  whole, part = step(()), step((('unet/.*', 0.25),))
  for net, factor in ('unet', 0.25), ('text_encoder', 1.0):
    for x, y in zip(jax.tree.leaves(part[net]), jax.tree.leaves(whole[net])):
      assert np.abs(y).max() > 0
      np.testing.assert_allclose(x, factor * y, rtol=2e-3)


@pytest.mark.parametrize(
  'rules, message',
  [
    ((('unet/c/.*', 0.5),), "'unet/c/.*', which matches no trained parameter.*"
     'such as text_encoder/c/kernel, unet/a/kernel, unet/b/kernel'),
    ((('unet', 0.5),), 'matches no trained parameter as a whole'),
    ((('.*', 0.5), ('unet/.*', 0.1)),
     "'unet/.*', but all 2 parameters that it matches have a rule before it"),
    ((('.*', 0.0),), 'freezes all 3 parameters'),
  ],
)  # fmt: skip
def test_rules_of_no_effect(rules, message):
  chain = learning_rates.of_trained(optax.sgd(0.1), rules)
  with pytest.raises(ValueError, match=message) as error:
    jax.eval_shape(chain.init, PARAMS)
  assert '\n' not in str(error.value)


def test_a_large_tree_is_shown_by_few_paths():
  many = {'unet': {f'{i:03}': jnp.ones(1) for i in range(999)}}
  with pytest.raises(ValueError, match='as unet/000, unet/250, unet/500, '):
    learning_rates.check((('vae/.*', 1.0),), many)


@pytest.mark.parametrize(
  'value, message',
  [
    ((('unet/(', 0.5),), "has 'unet/\\(', which is no regular expression"),
    (('unet/.*', 0.5), 'it must be a tuple such as'),
    ((('unet/.*', -0.5),), 'it must be a tuple such as'),
    ((('unet/.*',),), 'it must be a tuple such as'),
  ],
)
def test_what_is_no_rule(value, message):
  config = tiny_config.get_config()
  config.optimizer.rates = value
  with pytest.raises(ValueError, match=f'config.optimizer.rates .*{message}'):
    config_validation.check(config)


def shapes_of(config):
  """(Task, shapes of its State, gradients' shapes, sizes of the residuals)."""
  nets = from_config.make_model(config)
  task = tasks.make_task(config, nets)
  state = jax.eval_shape(task.init, jax.random.key(0))
  params = jax.eval_shape(nets.init, jax.random.key(0))
  frozen = {n: x for n, x in params.items() if n not in state.params}
  batch = task.batch_spec(tuple(config.data.buckets[0]))
  key = jax.eval_shape(lambda: jax.random.key(0))
  gradients, _ = jax.eval_shape(
    task.gradients, state.params, frozen, batch, key, jnp.int32(0)
  )
  after, _ = jax.eval_shape(task.update, state, gradients)
  same = jax.tree.map(lambda x, y: x.shape == y.shape, after, state)
  assert jax.tree.all(same)
  return task, state, gradients


def size(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def test_what_is_frozen_takes_no_memory():
  """No gradient, no moments, no EMA, in all parts of a step."""
  config = tiny_config.get_config()
  config.optimizer.rates = (
    ('text_encoder(_2)?/.*', 0.0),
    ('unet/down_blocks_0/.*', 0.0),
  )
  task, state, gradients = shapes_of(config)
  assert set(state.params) == set(config.trained)
  assert set(gradients) == {'unet'}
  assert 'down_blocks_0' not in gradients['unet']
  assert 'down_blocks_1' in gradients['unet']
  shapes = jax.tree.map(lambda x: x.shape, task.trained(state.params))
  assert shapes == jax.tree.map(lambda x: x.shape, gradients)
  trained = size(gradients)
  unet = state.params['unet']
  assert trained == size(unet) - size(unet['down_blocks_0'])
  # Two moments, an EMA, and counts.
  assert 3 * trained <= size(state.opt_state) < 3 * trained + 10


def test_parts_of_an_autoencoder_are_frozen():
  config = autoencoder_config.get_config()
  config.optimizer.rates = (('vae/encoder/.*', 0.0), ('vae/.*', 0.5))
  _, state, gradients = shapes_of(config)
  assert 'encoder' in state.params['vae']
  assert 'encoder' not in gradients['vae'] and 'decoder' in gradients['vae']
  assert {'discriminator', 'logvar'} < set(gradients)


@pytest.mark.slow
def test_gradients_of_what_is_trained_are_the_same():
  """Whatever is frozen beside it."""
  config = tiny_config.get_config()
  config.trained = ('unet', 'text_encoder_2')
  nets = from_config.make_model(config)
  params = jax.jit(nets.init)(jax.random.key(0))
  frozen = {'text_encoder': params.pop('text_encoder')}

  def gradients_of(rules):
    config.optimizer.rates = rules
    task = tasks.make_task(config, nets)
    batch = jax.tree.map(
      lambda x: jnp.ones(x.shape, x.dtype), task.batch_spec((16, 16))
    )
    found, metrics = jax.jit(task.gradients)(
      params, frozen, batch, jax.random.key(0), jnp.int32(0)
    )
    return found, metrics['loss']

  whole, loss = gradients_of(())
  part, same_loss = gradients_of((('text_encoder_2/.*', 0.0),))
  np.testing.assert_allclose(same_loss, loss, rtol=1e-6)
  assert set(part) == {'unet'}
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    part['unet'],
    whole['unet'],
  )
