"""What a config's steps need on machines that are not there."""

import dataclasses
import time

import jax

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config
from sdxl_jax.planning import cost, machines
from sdxl_jax.training import compilation, tasks

# The compiler then takes a fifth of its time; programs need as much memory.
QUICK = {'exec_time_optimization_effort': -1.0}
# Where a task's rematerialisation is set.
REMAT = {'diffusion': 'unet.remat', 'autoencoder': 'vae.remat'}
# What its times are of, on all machines that tell any.
OF = 'of the gradients alone'


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one bucket's step needs, per device unless said otherwise."""

  bucket: str  # heightxwidth
  batch: int  # pictures per device and micro-batch
  memory: int  # bytes at the peak, all that lives then
  fits: bool
  model_flops: float  # per picture, without rematerialisation
  flops: float  # per picture, as compiled
  collectives: dict  # {kind: bytes received}
  seconds: float | None  # of the gradients of one micro-batch
  utilisation: float | None  # model FLOPs over the chip's peak (MFU)
  compile_seconds: float


class Planner:
  """Compiles the steps of a config for the devices of a topology."""

  def __init__(self, config, name):
    axes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    self.machine = machines.make_machine(name, *axes)
    self.mesh = self.machine.mesh
    tasks.check_mesh(config, self.mesh)
    self.config = config
    self.task, self.state, self.frozen = self.make(config)
    self.plain, *_ = self.make(changed(config, {REMAT[config.task]: 'none'}))

  def make(self, config):
    # Asking cuDNN needs its device, so GPUs are planned with XLA's attention.
    platform = self.machine.platform
    if platform == 'gpu' and config.unet.attention in ('auto', 'cudnn'):
      config = changed(config, {'unet.attention': 'xla'})
    nets = from_config.make_model(config, platform)
    task = tasks.make_task(config, nets)
    key = jax.random.key(0)
    params = jax.eval_shape(nets.init, key)
    frozen = {name: params[name] for name in nets.configs}
    frozen = {n: x for n, x in frozen.items() if n not in config.trained}
    place = lambda tree: sharding.with_shardings(tree, self.mesh)
    return task, place(jax.eval_shape(task.init, key)), place(frozen)

  def update(self, options=None):
    """Peak of the update, with what lives beside it."""
    options = self.machine.options | (options or {})
    compiled = compilation.compile_update(
      self.task, self.mesh, self.state, options
    )
    return cost.memory(compiled).peak + machines.bytes_of(self.frozen)

  def gradients(self, bucket, options=None):
    """The Plan of a bucket."""
    started = time.monotonic()
    args = self.task, self.mesh, self.state.params, self.frozen, bucket
    compiled = compilation.compile_gradients(
      *args, self.machine.options | (options or {})
    )
    compile_seconds = time.monotonic() - started
    text, peak = compiled.as_text(), cost.memory(compiled).peak
    # Not among its arguments, but there: moments and EMA, the sum of the parts
    # before, and the next batch on its way.
    batch, *_ = compilation.example_batch(self.task, self.mesh, bucket)
    peak += machines.bytes_of(self.state.opt_state) + machines.bytes_of(batch)
    if self.task.micro_batches > 1:
      peak += machines.bytes_of(self.state.params)
    traced = compilation.trace_gradients(*args)
    plain = compilation.trace_gradients(self.plain, *args[1:])
    rows = self.config.global_batch_size // self.task.micro_batches
    model_flops = cost.flops(plain)
    seconds = self.machine.seconds(text, traced)
    chip = self.machine.chip
    peak_flops = seconds and chip.flops * self.machine.size * seconds
    return Plan(
      bucket=f'{bucket[0]}x{bucket[1]}',
      batch=rows // device_mesh.row_devices(self.mesh),
      memory=peak,
      fits=self.machine.fits(peak),
      model_flops=model_flops / rows,
      flops=cost.flops(traced) / rows,
      collectives=cost.collectives(text),
      seconds=seconds,
      utilisation=seconds and model_flops / peak_flops,
      compile_seconds=compile_seconds,
    )


def changed(config, fields):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config
