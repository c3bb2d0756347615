"""The shapes and dtypes of a config are those of the net it makes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sdxl_jax.models import clip
from sdxl_jax.weights import net_shapes
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_as_the_net_is_made(dtype):
  config = folder_reader.open_net(BASE / 'text_encoder', 'text_encoder').config(
    dtype=dtype, param_dtype=dtype, remat='full'
  )
  tokens = jnp.zeros((1, config.max_position_embeddings), jnp.int32)
  made = clip.CLIPText(config).init(jax.random.key(0), tokens)['params']
  shapes = net_shapes.abstract_params(config)
  assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, shapes)
  assert {x.dtype for x in jax.tree.leaves((made, shapes))} == {
    jnp.dtype(dtype)
  }


@pytest.mark.parametrize('net', ['unet', 'vae'])
def test_a_net_is_traced_once(net, monkeypatch):
  """Whatever it runs in, tracing takes seconds."""
  config = folder_reader.open_net(BASE / net, net).config()
  net_shapes.abstract_params(config)
  monkeypatch.setattr(jax, 'eval_shape', None)
  fields = {'param_dtype': 'bfloat16', 'dtype': 'bfloat16', 'remat': 'dots'}
  other = net_shapes.abstract_params(dataclasses.replace(config, **fields))
  assert {x.dtype for x in jax.tree.leaves(other)} == {jnp.dtype('bfloat16')}
