"""Tests the steps whose update is left out, on a model of two numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import transform
from sdxl_jax.training import optimizer, skipping, train_state


@pytest.fixture(scope='module')
def task():
  schedule = optax.linear_schedule(0.1, 0.0, 10)
  adamw = optimizer.make('adamw', schedule, optimizer.Settings())
  chain = optax.chain(adamw, transform.ema(0.9))

  def init(key, pretrained=None):
    params = {'net': {'kernel': jnp.array([1.0, 2.0])}}
    return train_state.State(
      jnp.zeros([], jnp.int32), params, chain.init(params)
    )

  def gradients(params, frozen, batch, key, micro_step):
    def loss(params):
      return (params['net']['kernel'] * batch).sum()

    value, gradients = jax.value_and_grad(loss)(params)
    return gradients, {'loss': value}

  update = train_state.make_update(chain, micro_batches=1)
  plain = train_state.Task(init, gradients, update, batch_spec=None)
  return plain, skipping.skip_non_finite(plain)


def step(task, state, batch):
  gradients, metrics = jax.jit(task.gradients)(
    state.params, {}, jnp.array(batch), None, 0
  )
  state, more = jax.jit(task.update)(state, gradients)
  return state, metrics | more


@pytest.mark.parametrize(
  'batch',
  [
    [np.nan, 1.0],
    [np.inf, 1.0],
    [3e38, 3e38],  # an infinite loss whose gradient is finite
  ],
)
def test_a_step_that_is_not_finite_changes_nothing_but_counts(task, batch):
  _, skipping_task = task
  state, _ = step(skipping_task, skipping_task.init(None), [1.0, -1.0])
  after, metrics = step(skipping_task, state, batch)
  assert not np.isfinite(metrics['loss'])
  assert int(after.step) == 2 and int(metrics['skipped']) == 1
  assert int(transform.updates(after.opt_state)) == 1
  same = jax.tree.map(np.array_equal, state.params, after.params)
  assert jax.tree.all(same)
  # The learning rate is that of the steps: its count went on, and no other did.
  (clip, (adam, decay, schedule)), ema = state.opt_state
  (_, (adam_after, _, schedule_after)), ema_after = after.opt_state
  assert int(schedule_after.count) == int(schedule.count) + 1 == 2
  same = jax.tree.map(np.array_equal, (adam, ema), (adam_after, ema_after))
  assert jax.tree.all(same)
  # The next step is taken.
  last, metrics = step(skipping_task, after, [1.0, -1.0])
  assert int(metrics['skipped']) == 1 and int(last.step) == 3
  assert not np.array_equal(
    last.params['net']['kernel'], after.params['net']['kernel']
  )


def test_finite_steps_are_those_of_the_plain_task(task):
  states = [t.init(None) for t in task]
  for batch in ([1.0, 2.0], [0.5, -3.0], [0.0, 1.0]):
    states = [step(t, s, batch)[0] for t, s in zip(task, states)]
  same = jax.tree.map(np.array_equal, *states)
  assert jax.tree.all(same)
