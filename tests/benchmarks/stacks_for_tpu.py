"""Compiles two stacks of transformer blocks for a TPU, and their gradients.

  python -m tests.benchmarks.stacks_for_tpu --remat dots,full --unroll 1,10

Two Transformer2D one after the other, ten blocks each, 1024 pixels of 1280
channels and 77 tokens of 2048, as the base has six of; one image per chip,
float32 parameters spread over all chips, bfloat16 products. Two, because one
alone has its stacked buffers allocated, and several have them zeroed. Prints
the compiler's estimated cycles, its temporary and peak memory, and seconds of
CPU, for each remat and number of blocks written out. Needs jax[tpu], but no
TPU; a minute or two per line.
"""

import dataclasses
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import transformer, unet
from sdxl_jax.planning import cost, topology
from sdxl_jax.training import compilation

SIDE, CHANNELS, HEADS, DEPTH = 32, 1280, 20, 10
FLAGS = flags.FLAGS


class Stacks(nn.Module):
  """Two stacks."""

  config: unet.UNetConfig

  @nn.compact
  def __call__(self, x, context):
    for name in 'ab':
      x = transformer.Transformer2D(self.config, HEADS, DEPTH, name=name)(
        x, context
      )
    return x


def compile_gradients(config, mesh, rows):
  """Compiles the gradients by parameters and input."""
  net = Stacks(config)
  shapes = [(rows, SIDE, SIDE, CHANNELS), (rows, 77, config.context_dim)]
  place = sharding.batch_sharding(mesh)
  inputs = [
    jax.ShapeDtypeStruct(shape, config.dtype, sharding=place)
    for shape in shapes
  ]
  params = jax.eval_shape(net.init, jax.random.key(0), *inputs)['params']
  params = sharding.with_shardings(params, mesh)

  def loss(params, x, context):
    out = net.apply({'params': params}, x, context)
    return jnp.mean(out.astype(jnp.float32) ** 2)

  function = jax.jit(
    jax.grad(loss, (0, 1)),
    out_shardings=(compilation.shardings_of(params), place),
  )
  with (
    jax.set_mesh(mesh),
    nn.intercept_methods(sharding.keep_rows(mesh, rows)),
  ):
    lowered = function.lower(params, *inputs)
  return lowered.compile(compilation.OPTIONS['tpu'])


def main(argv):
  del argv
  devices, _ = topology.make_devices(FLAGS.topology)
  mesh = device_mesh.make_mesh(1, -1, 1, devices)
  for remat in FLAGS.remat:
    for unroll in map(int, FLAGS.unroll):
      config = dataclasses.replace(
        unet.BASE,
        dtype='bfloat16',
        param_dtype=FLAGS.params,
        attention='splash',
        remat=remat,
        scan_unroll=unroll,
      )
      started = time.process_time()
      rows = FLAGS.rows * len(devices)
      compiled = compile_gradients(config, mesh, rows)
      seconds = time.process_time() - started
      memory = cost.memory(compiled)
      cycles = cost.cycles(compiled.as_text()).estimated / FLAGS.rows
      print(
        f'remat {remat}, {unroll} written out: {cycles / 2e6:.2f} M cycles per '
        f'stack and image, {memory.temporaries / 2**30:.2f} GiB temporary, '
        f'{memory.peak / 2**30:.2f} at the peak, {seconds:.0f} s of CPU',
        flush=True,
      )


if __name__ == '__main__':
  flags.DEFINE_string('topology', 'v5p:2x2x1', 'a TPU slice')
  flags.DEFINE_list('remat', ['dots'], "of 'none', 'dots', 'full'")
  flags.DEFINE_list('unroll', ['1', '10'], 'blocks written out')
  flags.DEFINE_string('params', 'float32', 'their type; as gradients_dtype')
  flags.DEFINE_integer('rows', 1, 'images per chip')
  app.run(main)
