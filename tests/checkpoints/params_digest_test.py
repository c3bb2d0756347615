"""Tests that parameters are identified by their values alone."""

import jax
import jax.numpy as jnp
import pytest

from sdxl_jax.checkpoints import params_digest
from sdxl_jax.distributed import device_mesh, sharding

PARAMS = {
  'conv': {'kernel': jnp.arange(64, dtype=jnp.float32).reshape(8, 8)},
  'scale': jnp.float32(2),
}


def test_places_play_no_part():
  """Arrays on one device, and sharded over several."""
  mesh = device_mesh.make_mesh(fsdp=4, data=1)
  shapes = sharding.with_shardings(jax.eval_shape(lambda: PARAMS), mesh)
  sharded = jax.tree.map(
    lambda x, shape: jax.device_put(x, shape.sharding), PARAMS, shapes
  )
  assert not sharded['conv']['kernel'].is_fully_replicated
  assert params_digest.digest(sharded) == params_digest.digest(PARAMS)


@pytest.mark.parametrize(
  'change',
  [
    {'scale': jnp.float32(2.0000002)},
    {'scale': jnp.int32(2)},
    {'scale': jnp.bfloat16(2)},
    {'conv': {'kernel': PARAMS['conv']['kernel'].reshape(4, 16)}},
    {'conv': {'weight': PARAMS['conv']['kernel']}},
  ],
  ids=['value', 'int32', 'bfloat16', 'shape', 'name'],
)
def test_all_else_does(change):
  assert params_digest.digest(PARAMS | change) != params_digest.digest(PARAMS)
