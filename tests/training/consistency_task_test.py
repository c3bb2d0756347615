"""The task of LCM-LoRA: what is teacher, student and target, and what moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.ema import partial_trees
from sdxl_jax.models import from_config
from sdxl_jax.training import tasks
from tests.support import tiny_config

KEY = jax.random.key(1)
GROUP = dict(layers=r'unet/.*/(to_[qkv]|conv2)', rank=2, alpha=2.0)


def make_config(**fields):
  config = tiny_config.get_config()
  with config.unlocked():
    config.update(trained=('lora',), lora={'unet': GROUP}, caption_dropout=0.0)
    config.validation.every = 0
    config.distillation.method = 'lcm'
    config.distillation.update(fields)
  return config


@functools.cache
def make(uncond):
  config = make_config()
  with config.unlocked():
    config.uncond = uncond
  nets = from_config.make_model(config)
  task = tasks.make_task(config, nets)
  params = jax.jit(nets.init)(jax.random.key(0))
  # Zero-initialised outputs would hide errors upstream.
  params = jax.tree.map(lambda x: x + 0.02, params)
  factors = {'lora': params.pop('lora')}
  rng = np.random.default_rng(0)

  def draw(s):
    if s.dtype == jnp.float32:
      return rng.uniform(-1, 1, s.shape).astype(s.dtype)
    return rng.integers(0, 40, s.shape, dtype=np.int32)

  batch = jax.tree.map(draw, task.batch_spec((16, 16)))
  gradients = jax.jit(task.gradients)
  return factors, params, lambda *trees: gradients(*trees, batch, KEY, 0)


def test_the_factors_alone_have_gradients():
  factors, frozen, gradients = make('zeros')
  found, metrics = gradients(factors, frozen)
  assert jax.tree.structure(found) == jax.tree.structure(factors)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found))
  assert metrics['loss'] > 0 and np.isfinite(metrics['mse'])


def test_the_teacher_has_no_factors(monkeypatch):
  """As in every call of the UNet: with factors twice, without once."""
  calls = []
  config = make_config()
  nets = from_config.make_model(config)
  denoiser = type(nets).denoiser

  def record(self, params, *arguments):
    calls.append(sorted(params))
    return denoiser(self, params, *arguments)

  monkeypatch.setattr(type(nets), 'denoiser', record)
  task = tasks.make_task(config, nets)
  params = jax.eval_shape(nets.init, jax.random.key(0))
  factors = {'lora': params.pop('lora')}
  spec = task.batch_spec((16, 16))
  jax.eval_shape(task.gradients, factors, params, spec, KEY, 0)
  assert calls[0] == ['unet'] and 'lora' in calls[1] and len(calls) == 2


def test_what_guidance_leads_away_from():
  """With 'empty' the encoder's last bias counts for the unconditional text."""
  losses = {}
  for uncond in ('zeros', 'empty'):
    factors, frozen, gradients = make(uncond)
    losses[uncond] = float(gradients(factors, frozen)[1]['loss'])
  assert losses['zeros'] != pytest.approx(losses['empty'], rel=1e-3)


def test_a_step_lessens_the_loss():
  """Along the gradient, with the same noise and the same target."""
  factors, frozen, gradients = make('zeros')
  found, before = gradients(factors, frozen)
  norm = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(found))
  rate = 0.01 * float(before['loss']) / norm
  moved = jax.tree.map(lambda x, g: x - rate * g, factors, found)
  assert partial_trees.flat(moved).keys() == partial_trees.flat(factors).keys()
  _, after = gradients(moved, frozen)
  assert after['loss'] < before['loss']
