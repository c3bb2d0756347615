"""Plans sampling: memory and time of the programs of `generate`.

Text encoding, denoising steps and decoding follow one another. While one of
them runs, the parameters of all nets are on the device; of an offloaded
pipeline only those of the running net are.

SDXL's base and refiner in bfloat16, their autoencoder in float32, with guidance
at 1024 px, take 14.3 of the 15.8 GiB of a TPU v5e, and 6.5 GiB if offloaded
(--topology v5e:1x1 --refiner configs/refiner.py --dtype bfloat16).
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import tqdm

from sdxl_jax.diffusion import samplers, sampling_schedule
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config, sdxl, text_encoder
from sdxl_jax.planning import cost, machines
from sdxl_jax.sampling import (
  denoising_loop,
  initial_latents,
  pipelines,
  vae_batches,
)

TEXT_ENCODERS = 'text_encoder', 'text_encoder_2'


@dataclasses.dataclass(frozen=True)
class SampleWorkload:
  """The settings of `generate` that decide its cost, named as the flags."""

  batch: int = 1  # images per device
  size: tuple[int, int] = (1024, 1024)  # (height, width) in px
  steps: int = 20
  sampler: str = 'euler'
  guided: bool = True
  tile: int | None = None  # px
  dtype: str = 'float32'
  vae_dtype: str = 'float32'
  offload: bool = False


@dataclasses.dataclass(frozen=True)
class PhaseCost:
  """What one program needs, per device unless stated otherwise."""

  name: str
  memory: int  # bytes at the peak, of all that is on the device then
  parameters: int  # bytes, those of idle nets included
  flops: float  # per image
  seconds: float | None  # per batch
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
  """What a run of `generate` needs on a machine."""

  machine: machines.Machine
  workload: SampleWorkload
  phases: list[PhaseCost]  # in order

  @property
  def worst(self) -> PhaseCost:
    """The phase that takes the most memory."""
    return max(self.phases, key=lambda phase: phase.memory)


@dataclasses.dataclass(frozen=True)
class Expert:
  """A base or a refiner: its nets, and the shapes of their parameters."""

  name: str  # '' or 'refiner '
  nets: sdxl.SDXL
  params: Any  # {net: shapes with shardings}


class Phase(NamedTuple):
  """A program of a run of `generate`."""

  name: str
  expert: Expert  # whose nets run
  nets: Sequence[str]  # names of the nets that run
  # Traces the program: (mesh, workload, expert, params of the nets).
  trace: Callable[..., jax.stages.Traced]


def plan(
  machine: machines.Machine,
  configs: Sequence[ml_collections.ConfigDict],
  workload: SampleWorkload,
) -> SamplingPlan:
  """Plans a run of `generate`.

  Args:
    machine: its devices split the images; each device has all parameters.
    configs: of the base and, if there is one, of the refiner.
    workload: what to sample.
  """
  experts = [make_expert(config, machine, workload) for config in configs]
  phases = [Phase('text', e, TEXT_ENCODERS, trace_text) for e in experts]
  phases += [Phase('steps', e, ('unet',), trace_steps) for e in experts]
  phases.append(Phase('decoding', experts[0], ('vae',), trace_decoding))
  resident = sum(machines.bytes_of(expert.params) for expert in experts)
  bar = tqdm.tqdm(phases, desc='compiling', unit='program')
  costs = [measure(machine, workload, phase, resident) for phase in bar]
  return SamplingPlan(machine, workload, costs)


def make_expert(
  config: ml_collections.ConfigDict,
  machine: machines.Machine,
  workload: SampleWorkload,
) -> Expert:
  """Makes the Expert of a config, with dtypes as in `pipelines.load`."""
  # Only a GPU itself can tell whether cuDNN supports it, so plans for GPUs use
  # XLA's attention.
  platform = machine.platform
  attention = (
    'xla' if platform == 'gpu' else from_config.default_attention(platform)
  )
  nets = from_config.make_model(config, platform).replace_each(
    lambda name: pipelines.runtime(
      name, workload.dtype, workload.vae_dtype, attention
    )
  )
  params = jax.eval_shape(nets.init, jax.random.key(0))
  params = {name: params[name] for name in nets.configs}
  params = sharding.with_shardings(params, machine.mesh)
  return Expert('refiner ' if nets.refiner else '', nets, params)


def measure(
  machine: machines.Machine,
  workload: SampleWorkload,
  phase: Phase,
  resident: int,
) -> PhaseCost:
  """Compiles the program of a phase and returns its cost.

  Args:
    machine: to compile for.
    workload: what to sample.
    phase: the program.
    resident: bytes per device of the parameters of all nets.
  """
  expert = phase.expert
  params = {n: expert.params[n] for n in phase.nets if n in expert.params}
  started = time.monotonic()
  with device_mesh.use(machine.mesh):
    traced = phase.trace(machine.mesh, workload, expert, params)
    compiled = traced.lower().compile(machine.options)
  compile_seconds = time.monotonic() - started
  # Idle nets stay on the device unless the pipeline is offloaded.
  own = machines.bytes_of(params)
  idle = 0 if workload.offload else resident - own
  images = workload.batch * machine.size
  return PhaseCost(
    name=expert.name + phase.name,
    memory=cost.memory(compiled).peak + idle,
    parameters=own + idle,
    flops=cost.flops(traced.jaxpr) / images,
    seconds=machine.seconds(compiled.as_text(), traced.jaxpr),
    compile_seconds=compile_seconds,
  )


def rows(
  mesh: jax.sharding.Mesh,
  shape: Sequence[int],
  dtype: Any = 'float32',
  make_sharding: Callable = sharding.batch_sharding,
) -> jax.ShapeDtypeStruct:
  """Returns the shape of an array whose rows the devices of a mesh split."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=make_sharding(mesh))


def trace_text(
  mesh: jax.sharding.Mesh,
  workload: SampleWorkload,
  expert: Expert,
  params: dict[str, Any],
) -> jax.stages.Traced:
  """Traces text encoding; negative prompts are a second call of it."""
  tokens = rows(mesh, (workload.batch * mesh.size, 2, 77), 'int32')
  encode = text_encoder.TextEncoder.encode
  return encode.trace(expert.nets.text, params, tokens)


def trace_steps(mesh, asked, expert, params):
  """Of all steps, as one of the two experts takes them."""
  nets, count = expert.nets, asked.batch * mesh.size
  shape = count, *initial_latents.latent_shape(nets, asked.size)
  sampler = samplers.SAMPLERS[asked.sampler]
  levels = sampling_schedule.make_sampling_schedule(
    nets.schedule, sampling_schedule.Spacing(), asked.sampler, asked.steps
  )

  def step(params, x, context, vector, levels, keys):
    carry = samplers.init_state(sampler, x)
    told = nets.project(params, context), vector
    guidance = denoising_loop.Guidance(5.0, 0.0)
    return denoising_loop.advance.__wrapped__(
      *(nets, params, carry, told, levels, keys, 0, asked.steps, guidance),
      kept=None,
      beside=None,
      sampler=asked.sampler,
      guided=asked.guided,
    )

  everywhere = lambda x: rows(mesh, x.shape, x.dtype, sharding.replicated)
  levels = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, levels))
  levels = jax.tree.map(everywhere, levels)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  return jax.jit(step).trace(
    params,
    rows(mesh, shape),
    *told_shapes(mesh, asked, expert),
    levels,
    rows(mesh, keys.shape, keys.dtype),
  )


def told_shapes(
  mesh: jax.sharding.Mesh, workload: SampleWorkload, expert: Expert
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
  """Returns the shapes of (context, vector), in pairs for guidance."""
  nets = expert.nets
  count = workload.batch * mesh.size * (2 if workload.guided else 1)
  context = count, 77, nets.unet.context_dim
  return (
    rows(mesh, context, workload.dtype),
    rows(mesh, (count, nets.unet.vector_dim)),
  )


def trace_decoding(
  mesh: jax.sharding.Mesh,
  workload: SampleWorkload,
  expert: Expert,
  params: dict[str, Any],
) -> jax.stages.Traced:
  """Traces decoding of one image per device, a slice of `vae_batches`."""
  shape = mesh.size, *initial_latents.latent_shape(expert.nets, workload.size)
  x = rows(mesh, shape)
  return vae_batches.decode.trace(expert.nets, params, x, workload.tile)
