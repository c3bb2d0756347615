"""Where arrays live, and that activations stay there."""

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


class Mesh:
  """Stands for one of more devices than there are here."""

  def __init__(self, data, fsdp, tensor):
    self.shape = dict(data=data, fsdp=fsdp, tensor=tensor)


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
    # Low-rank factors go with the sides of the kernel that they are beside.
    (f'{BLOCK}/attn1/to_q/a', (10, 1280, 16), P(None, 'fsdp', None)),
    (f'{BLOCK}/attn1/to_q/b', (10, 16, 1280), COLUMNS),
    (f'{BLOCK}/ff/net_2/a', (10, 5120, 16), ROWS),
    (f'{BLOCK}/ff/net_2/b', (10, 16, 1280), P(None, None, 'fsdp')),
    ('x/resnets_1/conv2/a', (3, 3, 640, 16), P(None, *ROWS)),
    ('unet/conv_in/kernel', (3, 3, 4, 320), P(None, None, None, 'fsdp')),
    ('unet/conv_out/bias', (4,), P('fsdp')),
    ('unet/odd/kernel', (3, 7), P(None, None)),
  ],
)  # fmt: skip
def test_partition(path, shape, spec):
  assert sharding.partition(path, shape, Mesh(1, 4, 2)) == spec
  moments = f'opt_state/1/0/mu/{path}'
  assert sharding.partition(moments, shape, Mesh(1, 4, 2)) == spec


@pytest.mark.parametrize('fsdp', [8, 16, 64])
def test_little_of_the_full_size_state_is_left_whole(fsdp):
  config = stage3.get_config()
  made = tasks.make_task(config, from_config.make_model(config, 'tpu'))
  state = jax.eval_shape(made.init, jax.random.key(0))
  whole, total = 0, 0

  def count(path, x):
    nonlocal whole, total
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = sharding.partition(name, x.shape, Mesh(1, fsdp, 1))
    total += x.size
    whole += x.size * ('fsdp' not in spec)

  jax.tree_util.tree_map_with_path(count, state)
  assert total > 4 * 2_567_463_684
  assert whole < 1e-5 * total


def compiled_text(axes, batch_size):
  config = tiny_config.get_config()
  config.global_batch_size = batch_size
  config.trained = ('unet',)
  nets = from_config.make_model(config)
  made = tasks.make_task(config, nets)
  # Looking words up in a table that is split does exchange what it finds.
  encoded = lambda width: jax.ShapeDtypeStruct((batch_size, *width), 'float32')
  spec = made.batch_spec((16, 24)) | {
    'context': encoded((77, config.unet.context_dim)),
    'pooled': encoded((config.text_encoder_2.projection_dim,)),
  }
  made = dataclasses.replace(made, batch_spec=lambda bucket: spec)
  devices = device_mesh.make_mesh(*axes, devices=jax.devices()[:4])
  params = jax.eval_shape(nets.init, jax.random.key(0))
  params = sharding.with_shardings(params, devices)
  trained = {'unet': params.pop('unet')}
  args = made, devices, trained, params, (16, 24)
  return compilation.compile_gradients(*args).as_text()


def test_no_activation_moves_between_devices():
  """What devices exchange is parameters and gradients, whatever the batch."""
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
