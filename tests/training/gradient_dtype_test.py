"""Gradients that are computed in bfloat16."""

import jax
import jax.numpy as jnp
import pytest

from sdxl_jax.models import from_config
from sdxl_jax.training import gradient_dtype, tasks, train_state
from tests.support import tiny_config
from tests.training import diffusion_task_test

KEY = jax.random.key(1)


def changed(**fields):
  config = tiny_config.get_config()
  with config.unlocked():
    for net in config.trained:
      config[net].dtype = 'bfloat16'
    config.optimizer.update(fields)
  return config


def gradients_of(config):
  """Gradients of a tiny UNet."""
  nets = from_config.make_model(config)
  task = tasks.make_task(config, nets)
  state = jax.jit(task.init)(jax.random.key(0))
  params = jax.tree.map(lambda x: x + 0.02, state.params)
  frozen = jax.jit(nets.init)(jax.random.key(0))
  frozen = {n: frozen[n] for n in nets.configs if n not in config.trained}
  batch = diffusion_task_test.random_batch(task.batch_spec((16, 24)))
  found, _ = jax.jit(task.gradients)(params, frozen, batch, KEY, 0)
  return jax.tree.leaves(found)


def norm(leaves):
  return sum(float(jnp.vdot(x, x)) for x in leaves) ** 0.5


def test_they_differ_by_the_digits_of_the_type():
  expected = gradients_of(changed())
  found = gradients_of(changed(gradients_dtype='bfloat16'))
  assert {x.dtype for x in found} == {jnp.dtype('float32')}
  distance = norm([a - b for a, b in zip(found, expected)]) / norm(expected)
  assert 1e-4 < distance < 3e-2


def test_the_nets_are_called_with_rounded_parameters():
  def gradients(params, factor):
    return jax.tree.map(lambda x: x * factor, params), {'loss': 0}

  task = train_state.Task(None, gradients, None, None)
  params = {'a': jnp.float32(1 + 2**-12), 'b': jnp.float32(3)}
  rounded = gradient_dtype.gradients_in(task, 'bfloat16')
  found, metrics = rounded.gradients(params, 2)
  assert found == {'a': 2, 'b': 6} and metrics == {'loss': 0}
  assert found['a'].dtype == jnp.float32
  assert gradient_dtype.gradients_in(task, 'float32') is task


def test_a_net_must_compute_in_the_type():
  config = changed(gradients_dtype='bfloat16')
  config.unet.dtype = 'float32'
  with pytest.raises(
    ValueError, match="'bfloat16', but config.trained has unet in float32: set"
  ):
    tasks.make_task(config, from_config.make_model(config))
  with pytest.raises(
    ValueError, match='has lora, which has no type of its own'
  ):
    gradient_dtype.check({'lora': None}, 'bfloat16')
  gradient_dtype.check({'lora': None}, 'float32')
