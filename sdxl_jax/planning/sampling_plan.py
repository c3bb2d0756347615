"""Plans sampling: memory and time of the programs of `generate`.

Text encoding, denoising steps and decoding follow one another. While one of
them runs, the parameters of all nets are on the device; of an offloaded
pipeline only those of the running net are.

SDXL's base and refiner in bfloat16, their autoencoder in float32, with guidance
at 1024 px, take 14.3 of the 15.8 GiB of a TPU v5e, and 6.5 GiB if offloaded
(--topology v5e:1x1 --refiner configs/refiner.py --vae_dtype float32).
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
  prompt_encoding,
  vae_batches,
  validation,
)
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.text import chunking

TEXT_ENCODERS = 'text_encoder', 'text_encoder_2'


@dataclasses.dataclass(frozen=True)
class SampleWorkload:
  """What decides the cost of `generate`, named as the flags."""

  # The size, steps, sampler, guidance_scale and tile count.
  settings: SampleSettings = SampleSettings(height=1024, width=1024, steps=20)
  batch: int = 1  # images per device
  dtype: str = 'float32'
  vae_dtype: str = 'float32'
  offload: bool = False

  @property
  def sampler(self) -> str:
    """The name of the sampler; a run's own is Euler's method."""
    return self.settings.sampler or 'euler'

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in px."""
    return self.settings.height, self.settings.width


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
  """A base or a refiner, and the shapes of its parameters."""

  name: str  # '' or 'refiner '
  model: sdxl.SDXL
  params: Any  # {net: shapes with shardings}
  text_chunks: int = 1  # of each text, see pipelines.Pipeline


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
  model = from_config.make_model(config, platform)
  model = model.replace_each(
    {
      name: pipelines.runtime_fields(
        name, workload.dtype, workload.vae_dtype, attention
      )
      for name in model.configs
    }
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  params = {name: params[name] for name in model.configs}
  params = sharding.with_shardings(params, machine.mesh)
  return Expert(
    'refiner ' if model.refiner else '',
    model,
    params,
    chunking.count_for(config.max_token_length),
  )


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
  count = workload.batch * mesh.size * expert.text_chunks
  tokens = rows(mesh, (count, *chunking.shape(1)), 'int32')
  encode = text_encoder.TextEncoder.encode
  return encode.trace(expert.model.text, params, tokens)


def trace_steps(
  mesh: jax.sharding.Mesh,
  workload: SampleWorkload,
  expert: Expert,
  params: dict[str, Any],
) -> jax.stages.Traced:
  """Traces all steps, as if one of base and refiner took them alone."""
  model, settings = expert.model, workload.settings
  count = workload.batch * mesh.size
  shape = count, *initial_latents.latent_shape(model, workload.size)
  schedule = sampling_schedule.make_sampling_schedule(
    model.schedule,
    sampling_schedule.Spacing(),
    workload.sampler,
    settings.steps,
  )

  def steps(params, x, conditioning, schedule, keys):
    context = model.precompute_cross_attention_kv(params, conditioning.context)
    inputs = denoising_loop.StepInputs(
      conditioning._replace(context=context),
      schedule,
      keys,
      denoising_loop.Guidance(
        settings.guidance_scale, settings.guidance_rescale
      ),
    )
    # The number of steps is static, so that their cost can be multiplied.
    return denoising_loop.denoise_steps(
      model,
      params,
      samplers.init_state(samplers.SAMPLERS[workload.sampler], x),
      inputs,
      start=0,
      stop=settings.steps,
      sampler=workload.sampler,
      guided=validation.uses_cfg(model, settings.guidance_scale),
    )

  def replicated(x):
    return rows(mesh, x.shape, x.dtype, sharding.replicated)

  schedule = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, schedule))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  return jax.jit(steps).trace(
    params,
    rows(mesh, shape),
    conditioning_shapes(mesh, workload, expert),
    jax.tree.map(replicated, schedule),
    rows(mesh, keys.shape, keys.dtype),
  )


def conditioning_shapes(
  mesh: jax.sharding.Mesh, workload: SampleWorkload, expert: Expert
) -> prompt_encoding.Conditioning:
  """Returns the shapes of the conditioning, in pairs of rows for guidance."""
  unet = expert.model.unet
  scale = workload.settings.guidance_scale
  branches = 2 if validation.uses_cfg(expert.model, scale) else 1
  count = workload.batch * mesh.size * branches
  length = expert.text_chunks * chunking.LENGTH
  return prompt_encoding.Conditioning(
    context=rows(mesh, (count, length, unet.context_dim), workload.dtype),
    vector=rows(mesh, (count, unet.vector_dim)),
  )


def trace_decoding(
  mesh: jax.sharding.Mesh,
  workload: SampleWorkload,
  expert: Expert,
  params: dict[str, Any],
) -> jax.stages.Traced:
  """Traces decoding of one image per device, a slice of `vae_batches`."""
  shape = mesh.size, *initial_latents.latent_shape(expert.model, workload.size)
  x = rows(mesh, shape)
  return vae_batches.decode.trace(
    expert.model, params, x, workload.settings.tile
  )
