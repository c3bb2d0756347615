"""Compiles the base UNet's training step for a TPU, as loops and written out.

  python -m tests.benchmarks.step_for_tpu --topology v5p:2x2x1

One image per chip (--rows) at 1024 x 1024, from VAE moments and encoded text;
float32 parameters, moments and EMA are sharded over all chips. Prints peak
memory, cycles per image and compile seconds of both, and the same figures of
maxdiffusion at 7cfb880 (with jax 0.10.2 and libtpu 0.0.42.1; without EMA).
Needs jax[tpu], but no TPU; an hour of CPU.
"""

import dataclasses
import time

import jax
from absl import app, flags

from configs import stage3
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config
from sdxl_jax.planning import cost, machines, topology
from sdxl_jax.training import compilation, tasks

SIZE = (1024, 1024)
# Of maxdiffusion: GiB per chip, M cycles, seconds of two compilations.
PEER = dict(memory=40.1, cycles=350, seconds='919 and 1,011')


def make(config, mesh):
  """Returns (task, shapes of its state), with the batch already encoded."""
  nets = from_config.make_model(config, 'tpu')
  task = tasks.make_task(config, nets)
  rows = config.global_batch_size
  batch = task.batch_spec(SIZE)
  del batch['image'], batch['tokens']
  f = nets.vae.downscale
  shapes = {
    'moments': (SIZE[0] // f, SIZE[1] // f, 2 * nets.unet.in_channels),
    'context': (77, nets.unet.context_dim),
    'pooled': (nets.text.text_encoder_2.projection_dim,),
  }
  for name, shape in shapes.items():
    batch[name] = jax.ShapeDtypeStruct((rows, *shape), 'float32')
  task = dataclasses.replace(task, batch_spec=lambda bucket: batch)
  state = jax.eval_shape(task.init, jax.random.key(0))
  return task, sharding.with_shardings(state, mesh)


def measure(config, devices, chip):
  """Compiles the step of a config and prints what it needs."""
  mesh = device_mesh.make_mesh(1, -1, 1, devices)
  task, state = make(config, mesh)
  started = time.monotonic(), time.process_time()
  arguments = task, mesh, state.params, {}, SIZE
  compiled = compilation.compile_gradients(*arguments)
  seconds = time.monotonic() - started[0], time.process_time() - started[1]
  # Fused attention has no estimate by the compiler.
  text = compiled.as_text()
  jaxpr = compilation.trace_gradients(*arguments).jaxpr
  flops = cost.compiled_kernel_flops(text, jaxpr)
  in_kernels = flops / (machines.ATTENTION_PEAK_SHARE * chip.flops) * chip.clock
  peak = cost.memory(compiled).peak + machines.bytes_of(state.opt_state)
  rows = config.global_batch_size // len(devices)
  cycles = cost.cycles(text).estimated / rows
  update = cost.memory(compilation.compile_update(task, mesh, state)).peak
  print(
    f'  peak {max(peak, update) / 2**30:.1f} GiB per chip, moments and EMA '
    f'included (gradients {peak / 2**30:.1f}, update {update / 2**30:.1f}); '
    f'{cycles / 1e6:.0f} M cycles per image and '
    f'{in_kernels / rows / 1e6:.0f} M in kernels at '
    f'{machines.ATTENTION_PEAK_SHARE} of the peak; compiled in '
    f'{seconds[0]:.0f} s ({seconds[1]:.0f} s of CPU)',
    flush=True,
  )


def main(argv):
  del argv
  devices, chip = topology.make_devices(flags.FLAGS.topology)
  print(
    'maxdiffusion on v5p:2x2x1: peak {memory} GiB per chip, {cycles} M cycles, '
    'compiled in {seconds} s'.format(**PEER)
  )
  for unroll in map(int, flags.FLAGS.unroll):
    config = stage3.get_config()
    config.global_batch_size = flags.FLAGS.rows * len(devices)
    config.unet.remat = flags.FLAGS.remat
    config.unet.scan_unroll = unroll
    config.optimizer.gradients_dtype = flags.FLAGS.gradients
    print(f'ours, scan_unroll={unroll}:', flush=True)
    measure(config, devices, chip)


if __name__ == '__main__':
  flags.DEFINE_string('topology', 'v5p:2x2x1', 'a TPU slice')
  flags.DEFINE_string('remat', 'dots', "'none', 'dots' or 'full'")
  flags.DEFINE_list('unroll', ['1', '10'], 'blocks written out, scan_unroll')
  flags.DEFINE_string('gradients', 'float32', 'or bfloat16: gradients_dtype')
  flags.DEFINE_integer('rows', 1, 'images per chip')
  app.run(main)
