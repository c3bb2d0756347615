"""Plans training: memory and time of a config's steps on a named machine."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import ml_collections

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config, net_types
from sdxl_jax.planning import cost, machines, program_profile
from sdxl_jax.training import compilation, run_setup, tasks

# Compiles in a fifth of the time; the programs need as much memory.
QUICK = {'exec_time_optimization_effort': -1.0}
QUICK_SHARE = 0.2  # of the time that a program takes to compile otherwise
# The field that sets the rematerialisation of a task.
REMAT = {'diffusion': 'unet.remat', 'autoencoder': 'vae.remat'}


@dataclasses.dataclass(frozen=True)
class BucketCost:
  """What the step of one bucket needs, per device unless stated otherwise."""

  bucket: str  # heightxwidth
  batch: int  # images per device and micro-batch
  memory: int  # bytes at the peak, of all that is on the device then
  fits: bool
  model_flops: float  # per image, without rematerialisation
  flops: float  # per image, as compiled
  collectives: dict[str, float]  # {kind: bytes received}
  seconds: float | None  # for the gradients of one micro-batch
  utilisation: float | None  # model FLOPs over the chip's peak (MFU)
  compile_seconds: float
  profile: program_profile.Profile | None = None  # if it was asked for


class UpdateCost(NamedTuple):
  """What the update of the parameters needs, per device."""

  memory: int  # bytes at the peak, frozen nets included
  seconds: float | None
  profile: program_profile.Profile | None = None  # if it was asked for


class Planner:
  """Compiles the steps of a config for the devices of a topology.

  Args:
    config: of a run.
    name: of the topology.
    profiled: whether to find out where the time goes.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, name: str, profiled: bool = False
  ):
    self.profiled = profiled
    axes = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    self.machine = machines.make_machine(name, *axes)
    given, config = config, net_types.resolve(config, self.machine.kind)
    self.types = net_types.describe(given, config)  # lines on what was 'auto'
    self.mesh = self.machine.mesh
    tasks.check_mesh(config, self.mesh)
    self.config = config
    self.task, self.state, self.frozen = self._make(config)
    # The same task without rematerialisation, for model_flops.
    self.plain, *_ = self._make(changed(config, {REMAT[config.task]: 'none'}))

  def _make(self, config):
    """Makes (Task, shapes of its State, shapes of the frozen nets)."""
    # Only a GPU itself can tell whether cuDNN supports it, so plans for GPUs
    # use XLA's attention.
    platform = self.machine.platform
    if platform == 'gpu' and config.unet.attention in ('auto', 'cudnn'):
      config = changed(config, {'unet.attention': 'xla'})
    nets = from_config.make_model(config, platform)
    task = tasks.make_task(config, nets)
    key = jax.random.key(0)
    params = jax.eval_shape(nets.init, key)
    # What training holds on the devices.
    absent = (*config.trained, *run_setup.idle_nets(config, nets))
    frozen = {n: params[n] for n in nets.configs if n not in absent}
    state = jax.eval_shape(task.init, key)
    return (
      task,
      sharding.with_shardings(state, self.mesh),
      sharding.with_shardings(frozen, self.mesh),
    )

  def update(self, options: dict[str, Any] | None = None) -> UpdateCost:
    """Compiles the update and returns its cost.

    Args:
      options: {name: value} for the compiler.
    """
    options = self.machine.options | (options or {})
    traced = compilation.trace_update(self.task, self.mesh, self.state)
    compiled = traced.lower().compile(options)
    peak = cost.memory(compiled).peak + machines.bytes_of(self.frozen)
    text, jaxpr, profile = compiled.as_text(), traced.jaxpr, None
    if self.profiled:
      profile = program_profile.profile(self.machine, 'the update', text, jaxpr)
    return UpdateCost(peak, self.machine.seconds(text, jaxpr), profile)

  def gradients(
    self, bucket: tuple[int, int], options: dict[str, Any] | None = None
  ) -> BucketCost:
    """Compiles the gradients of a bucket and returns their cost.

    Args:
      bucket: (height, width) in px.
      options: {name: value} for the compiler.
    """
    started = time.monotonic()
    args = self.task, self.mesh, self.state.params, self.frozen, bucket
    # Some arrays are not read, as those of a decoder, and take memory too.
    compiled = compilation.compile_gradients(
      *args, self.machine.options | (options or {}), keep_unused=True
    )
    compile_seconds = time.monotonic() - started
    peak = cost.memory(compiled).peak
    # On the device, but not among the arguments: moments and EMA, the sum of
    # the earlier micro-batches' gradients, and the batches put ahead: those of
    # this step and the next, dispatched while it runs, and one more.
    batch, *_ = compilation.example_batch(self.task, self.mesh, bucket)
    ahead = 2 * self.task.micro_batches * machines.bytes_of(batch)
    peak += machines.bytes_of(self.state.opt_state) + ahead
    if self.task.micro_batches > 1:
      peak += machines.bytes_of(self.task.trained(self.state.params))
    # Count FLOPs with rematerialisation and without.
    jaxpr = compilation.trace_gradients(*args).jaxpr
    plain = compilation.trace_gradients(self.plain, *args[1:]).jaxpr
    rows = self.config.global_batch_size // self.task.micro_batches
    model_flops = cost.flops(plain)
    text = compiled.as_text()
    seconds = self.machine.seconds(text, jaxpr)
    name, profile = f'{bucket[0]}x{bucket[1]}', None
    if self.profiled:
      profile = program_profile.profile(self.machine, name, text, jaxpr)
    return BucketCost(
      bucket=name,
      batch=rows // device_mesh.row_devices(self.mesh),
      memory=peak,
      fits=self.machine.fits(peak),
      model_flops=model_flops / rows,
      flops=cost.compiled_flops(text, jaxpr, self.machine.size) / rows,
      collectives=cost.collectives(text),
      seconds=seconds,
      utilisation=self._utilisation(model_flops, seconds),
      compile_seconds=compile_seconds,
      profile=profile,
    )

  def _utilisation(self, model_flops, seconds):
    """Computes model FLOPs over those of all devices at their peak (MFU)."""
    if seconds is None:
      return None
    return model_flops / (self.machine.chip.flops * self.machine.size * seconds)


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
  """What a config needs on a machine."""

  planner: Planner
  buckets: list[BucketCost]
  update: UpdateCost

  @property
  def profiles(self) -> list[program_profile.Profile]:
    """Where the time goes, of each bucket and of the update."""
    found = [bucket.profile for bucket in self.buckets]
    return [p for p in (*found, self.update.profile) if p is not None]

  @property
  def worst(self) -> BucketCost:
    """The bucket that takes the most memory."""
    return max(self.buckets, key=lambda bucket: bucket.memory)


def changed(
  config: ml_collections.ConfigDict, fields: dict[str, Any]
) -> ml_collections.ConfigDict:
  """Returns a copy of a config with some {'section.field': value}."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config
