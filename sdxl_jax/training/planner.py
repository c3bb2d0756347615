"""What a config's steps need on machines that are not there."""

import dataclasses
import math
import time

import jax

from sdxl_jax.distributed import cost, sharding, topology
from sdxl_jax.distributed import mesh as meshes
from sdxl_jax.training import task as tasks

# Of the chip's memory, for what no compiler counts: fragments, other programs.
SPARE = 0.05
# Heads of 64 fill half of a matrix unit that is 128 wide, so that fused
# attention can reach half of the peak at best.
KERNEL_SHARE = 0.5
# A GPU's compiler estimates no time. Large matmuls reach about 70 % there.
GPU_SHARE = 0.7
# The compiler then takes a fifth of its time; programs need as much memory.
QUICK = {'exec_time_optimization_effort': -1.0}
# What fits a GPU's matmuls best is tried out on it. Without one the guess of
# tiles may fit none at all, so they are left to cuBLAS.
UNTRIED = {'gpu': {'xla_gpu_enable_triton_gemm': False}}
# Where a task's rematerialisation is set.
REMAT = {'diffusion': 'unet.remat', 'autoencoder': 'vae.remat'}
METHOD = {
  'tpu': 'seconds, of the gradients alone: the cycles that the TPU compiler '
  f'estimates, fused attention at {KERNEL_SHARE} of the peak, and what the '
  'collectives move over the links, one after another',
  'gpu': f'seconds, of the gradients alone: FLOPs at {GPU_SHARE} of the peak '
  'or bytes at full bandwidth, whichever takes longer, and then what the '
  "collectives move. Planned with XLA's attention; cuDNN's takes less memory "
  'and traffic',
  'cpu': 'no figures of this machine are known, so no time',
}


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
    self.devices, self.chip = topology.make_devices(name)
    self.mesh = meshes.make_mesh(
      config.mesh.data, config.mesh.fsdp, config.mesh.tensor, self.devices
    )
    self.platform = meshes.platform(self.mesh)
    self.options = UNTRIED.get(self.platform, {})
    tasks.check_mesh(config, self.mesh)
    self.config = config
    self.task, self.state, self.frozen = self.make(config)
    self.plain, *_ = self.make(changed(config, {REMAT[config.task]: 'none'}))

  def make(self, config):
    # Asking cuDNN needs its device, so GPUs are planned with XLA's attention.
    if self.platform == 'gpu' and config.unet.attention in ('auto', 'cudnn'):
      config = changed(config, {'unet.attention': 'xla'})
    nets = tasks.make_nets(config, self.platform)
    task = tasks.make_task(config, nets)
    key = jax.random.key(0)
    params = jax.eval_shape(nets.init, key)
    frozen = {name: params[name] for name in nets.configs}
    frozen = {n: x for n, x in frozen.items() if n not in config.trained}
    place = lambda tree: sharding.with_shardings(tree, self.mesh)
    return task, place(jax.eval_shape(task.init, key)), place(frozen)

  def update(self, options=None):
    """Peak of the update, with what lives beside it."""
    options = self.options | (options or {})
    compiled = tasks.compile_update(self.task, self.mesh, self.state, options)
    return cost.memory(compiled).peak + bytes_of(self.frozen)

  def gradients(self, bucket, options=None):
    """The Plan of a bucket."""
    started = time.monotonic()
    args = self.task, self.mesh, self.state.params, self.frozen, bucket
    compiled = tasks.compile_gradients(*args, self.options | (options or {}))
    compile_seconds = time.monotonic() - started
    text, peak = compiled.as_text(), cost.memory(compiled).peak
    # Not among its arguments, but there: moments and EMA, the sum of the parts
    # before, and the next batch on its way.
    batch, *_ = tasks.example_batch(self.task, self.mesh, bucket)
    peak += bytes_of(self.state.opt_state) + bytes_of(batch)
    if self.task.parts > 1:
      peak += bytes_of(self.state.params)
    traced = tasks.trace_gradients(*args)
    plain = tasks.trace_gradients(self.plain, *args[1:])
    rows = self.config.global_batch_size // self.task.parts
    model_flops = cost.flops(plain)
    collectives = cost.collectives(text)
    seconds = self.seconds(text, traced, sum(collectives.values()))
    peak_flops = seconds and self.chip.flops * len(self.devices) * seconds
    return Plan(
      bucket=f'{bucket[0]}x{bucket[1]}',
      batch=rows // meshes.row_devices(self.mesh),
      memory=peak,
      fits=self.fits(peak),
      model_flops=model_flops / rows,
      flops=cost.flops(traced) / rows,
      collectives=collectives,
      seconds=seconds,
      utilisation=seconds and model_flops / peak_flops,
      compile_seconds=compile_seconds,
    )

  def fits(self, peak):
    return self.chip.memory is None or peak <= (1 - SPARE) * self.chip.memory

  def seconds(self, text, traced, moved):
    """The estimate that METHOD describes, given the bytes that move."""
    chip = self.chip
    kernels = cost.flops_by_kernel(traced)
    matmuls = kernels.pop(None, 0) / len(self.devices)
    fused = sum(kernels.values()) / len(self.devices)
    if self.platform == 'tpu':
      estimated = cost.cycles(text).estimated / chip.clock
      kernel = fused / (KERNEL_SHARE * chip.flops)
      return estimated + kernel + moved / chip.link
    if self.platform == 'gpu':
      compute = matmuls / (GPU_SHARE * chip.flops)
      memory = cost.bytes_accessed(text) / chip.bandwidth
      return max(compute, memory) + moved / chip.link
    return None


def changed(config, fields):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config


def bytes_of(tree):
  """Of the arrays on one device."""
  local = lambda x: x.sharding.shard_shape(x.shape)
  return sum(
    math.prod(local(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
