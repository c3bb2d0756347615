"""The task of LCM-LoRA: what is teacher, student and target, and what moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.ema import partial_trees
from sdxl_jax.models import from_config
from sdxl_jax.text import tokenizer
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


def draw_batch(task):
  rng = np.random.default_rng(0)

  def draw(s):
    if s.dtype == jnp.float32:
      return rng.uniform(-1, 1, s.shape).astype(s.dtype)
    return rng.integers(0, 40, s.shape, dtype=np.int32)

  return jax.tree.map(draw, task.batch_spec((16, 16)))


@functools.cache
def make():
  config = make_config()
  nets = from_config.make_model(config)
  task = tasks.make_task(config, nets)
  params = jax.jit(nets.init)(jax.random.key(0))
  # Zero-initialised outputs would hide errors upstream.
  params = jax.tree.map(lambda x: x + 0.02, params)
  factors = {'lora': params.pop('lora')}
  batch = draw_batch(task)
  gradients = jax.jit(task.gradients)
  return factors, params, lambda *trees: gradients(*trees, batch, KEY, 0)


def test_the_factors_alone_have_gradients():
  factors, frozen, gradients = make()
  found, metrics = gradients(factors, frozen)
  assert jax.tree.structure(found) == jax.tree.structure(factors)
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found))
  assert metrics['loss'] > 0 and np.isfinite(metrics['mse'])


class Calls:
  """What the nets of one loss are called with, in place of SDXL.denoiser."""

  def __init__(self, monkeypatch, uncond):
    config = make_config()
    with config.unlocked():
      config.uncond = uncond
    self.nets = from_config.make_model(config)
    self.params, self.contexts, self.vectors = [], [], []
    monkeypatch.setattr(type(self.nets), 'denoiser', self.record)
    task = tasks.make_task(config, self.nets)
    frozen = jax.jit(self.nets.init)(jax.random.key(0))
    factors = {'lora': frozen.pop('lora')}
    self.frozen, self.batch = frozen, draw_batch(task)
    task.gradients(factors, frozen, self.batch, KEY, 0)

  def record(self, params, context, vector):
    self.params.append(sorted(params))
    self.contexts.append(np.asarray(context))
    self.vectors.append(np.asarray(vector))
    return lambda x, timestep: x

  def text(self, tokens):
    """Returns (context, vector) of tokens, with the sizes of the batch."""
    context, pooled = self.nets.text.encode(self.frozen, tokens)
    pooled = jnp.broadcast_to(
      pooled, (len(self.batch['tokens']), *pooled.shape[1:])
    )
    return context, self.nets.vector(pooled, self.batch)


@pytest.mark.parametrize('uncond', ['zeros', 'empty'])
def test_what_teacher_and_student_take(monkeypatch, uncond, close):
  """The frozen UNet takes both rows, the UNet with factors that of the text."""
  calls = Calls(monkeypatch, uncond)
  assert len(calls.params) == 2
  assert calls.params[0] == ['unet'] and 'lora' in calls.params[1]
  context, vector = calls.text(calls.batch['tokens'])
  close(calls.contexts[1], context, 1e-5)
  close(calls.vectors[1], vector, 1e-5)
  # Side by side: the row without the text, and the row with it.
  close(calls.contexts[0][1::2], context, 1e-5)
  close(calls.vectors[0][1::2], vector, 1e-5)
  if uncond == 'zeros':
    assert not calls.contexts[0][::2].any()
    pooled = calls.nets.text.encode(calls.frozen, calls.batch['tokens'])[1]
    vector = calls.nets.vector(jnp.zeros_like(pooled), calls.batch)
  else:
    tokens, _ = tokenizer.load().captions([''])
    empty, vector = calls.text(tokens)
    for row in calls.contexts[0][::2]:
      close(row, empty[0], 1e-5)
  close(calls.vectors[0][::2], vector, 1e-5)


def test_a_step_lessens_the_loss():
  """Along the gradient, with the same noise and the same target."""
  factors, frozen, gradients = make()
  found, before = gradients(factors, frozen)
  norm = sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(found))
  rate = 0.01 * float(before['loss']) / norm
  moved = jax.tree.map(lambda x, g: x - rate * g, factors, found)
  assert partial_trees.flat(moved).keys() == partial_trees.flat(factors).keys()
  _, after = gradients(moved, frozen)
  assert after['loss'] < before['loss']
