"""Tests shardings of parameters, and that activations are not moved."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import stage3
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config
from sdxl_jax.planning import cost
from sdxl_jax.training import compilation, tasks
from tests.support import tiny_config


def make_abstract_mesh(data, fsdp, tensor):
  """Makes a mesh of more devices than this machine has."""
  return jax.sharding.AbstractMesh((data, fsdp, tensor), device_mesh.AXES)


COLUMNS, ROWS = P(None, 'fsdp', 'tensor'), P(None, 'tensor', 'fsdp')
BLOCK = 'unet/down_blocks_2/attentions_0/transformer_blocks'


@pytest.mark.parametrize(
  'path, shape, spec',
  [
    (f'{BLOCK}/attn1/to_q/kernel', (10, 1280, 1280), COLUMNS),
    (f'{BLOCK}/attn2/to_out_0/kernel', (10, 1280, 1280), ROWS),
    (f'{BLOCK}/attn2/to_out_0/bias', (10, 1280), P(None, 'fsdp')),
    (f'{BLOCK}/ff/net_0/proj/kernel', (10, 1280, 10240), COLUMNS),
    (f'{BLOCK}/ff/net_2/kernel', (10, 5120, 1280), ROWS),
    (f'{BLOCK}/norm2/scale', (10, 1280), P(None, 'fsdp')),
    ('x/resnets_1/conv1/kernel', (3, 3, 960, 640), P(None, *COLUMNS)),
    ('x/resnets_1/conv2/kernel', (3, 3, 640, 640), P(None, *ROWS)),
    ('x/resnets_1/norm2/scale', (640,), P('tensor')),
    # A low-rank factor is split like the axis that it shares with the kernel.
    (f'{BLOCK}/attn1/to_q/a', (10, 1280, 16), P(None, 'fsdp', None)),
    (f'{BLOCK}/attn1/to_q/b', (10, 16, 1280), COLUMNS),
    (f'{BLOCK}/ff/net_2/a', (10, 5120, 16), ROWS),
    (f'{BLOCK}/ff/net_2/b', (10, 16, 1280), P(None, None, 'fsdp')),
    ('x/resnets_1/conv2/a', (3, 3, 640, 16), P(None, *ROWS)),
    (f'{BLOCK}/attn1/to_q/b2', (10, 16, 1280), COLUMNS),
    (f'{BLOCK}/attn1/to_q/d', (10, 1280, 1280), COLUMNS),
    (f'{BLOCK}/ff/net_2/a1', (10, 5120, 16), ROWS),
    (f'{BLOCK}/ff/net_2/w2_b', (10, 4, 40), P(None, None, 'fsdp')),
    ('unet/conv_in/kernel', (3, 3, 4, 320), P(None, None, None, 'fsdp')),
    ('unet/conv_out/bias', (4,), P('fsdp')),
    ('unet/odd/kernel', (3, 7), P(None, None)),
  ],
)  # fmt: skip
def test_partition(path, shape, spec):
  assert sharding.partition(path, shape, make_abstract_mesh(1, 4, 2)) == spec
  moments = f'opt_state/1/0/mu/{path}'
  assert sharding.partition(moments, shape, make_abstract_mesh(1, 4, 2)) == spec


@pytest.mark.parametrize('fsdp', [8, 16, 64])
def test_almost_all_of_the_full_size_state_is_sharded(fsdp):
  config = stage3.get_config()
  task = tasks.make_task(config, from_config.make_model(config, 'tpu'))
  state = jax.eval_shape(task.init, jax.random.key(0))
  mesh = make_abstract_mesh(1, fsdp, 1)
  replicated, total = 0, 0

  def count(path, x):
    nonlocal replicated, total
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = sharding.partition(name, x.shape, mesh)
    total += x.size
    replicated += 0 if 'fsdp' in spec else x.size

  jax.tree_util.tree_map_with_path(count, state)
  assert total > 4 * 2_567_463_684
  assert replicated < 1e-5 * total


def compiled_text(axes, batch_size):
  config = tiny_config.get_config()
  config.global_batch_size = batch_size
  config.trained = ('unet',)
  nets = from_config.make_model(config)
  task = tasks.make_task(config, nets)
  # The text is already encoded: lookup in a sharded table of embeddings would
  # exchange activations.
  context = batch_size, 77, config.unet.context_dim
  pooled = batch_size, config.text_encoder_2.projection_dim
  spec = task.batch_spec((16, 24)) | {
    'context': jax.ShapeDtypeStruct(context, 'float32'),
    'pooled': jax.ShapeDtypeStruct(pooled, 'float32'),
  }
  task = dataclasses.replace(task, batch_spec=lambda bucket: spec)
  devices = device_mesh.make_mesh(*axes, devices=jax.devices()[:4])
  params = jax.eval_shape(nets.init, jax.random.key(0))
  params = sharding.with_shardings(params, devices)
  trained = {'unet': params.pop('unet')}
  compiled = compilation.compile_gradients(
    task, devices, trained, params, (16, 24)
  )
  return compiled.as_text()


@pytest.mark.slow
def test_no_activation_moves_between_devices():
  """Devices exchange parameters and gradients only, whatever the batch."""
  small, large = (cost.collectives(compiled_text((1, 4, 1), n)) for n in (4, 8))
  assert small['all-gather'] > 0
  assert small == large


def test_rows():
  four = device_mesh.make_mesh(2, 2, devices=jax.devices()[:4])
  assert sharding.local_rows(four, 8) == list(range(8))
  batch = {'x': np.arange(24.0).reshape(8, 3)}
  spec = {'x': jax.ShapeDtypeStruct((8, 3), np.float32)}
  put = sharding.put_batch(batch, four, spec)
  np.testing.assert_array_equal(put['x'], batch['x'])
  assert {s.data.shape for s in put['x'].addressable_shards} == {(2, 3)}
