"""The programs of `generate`, traced for a machine: text, steps, decoding."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sdxl_jax.diffusion import samplers, sampling_schedule
from sdxl_jax.distributed import sharding
from sdxl_jax.models import from_config, sdxl, text_encoder
from sdxl_jax.planning import machines
from sdxl_jax.sampling import (
  denoising_loop,
  initial_latents,
  load_options,
  prompt_encoding,
  step_net,
  step_segments,
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
  weights_dtype: str | None = None
  # See load_options.LoadOptions; without names of nets.
  offload: str | bool = 'auto'
  host_memory: int | None = None  # bytes of each host; None: no limit

  @property
  def sampler(self) -> str:
    """The name of the sampler; a run's own is Euler's method."""
    return self.settings.sampler or 'euler'

  @property
  def size(self) -> tuple[int, int]:
    """(height, width) in px."""
    return self.settings.height, self.settings.width


@dataclasses.dataclass(frozen=True)
class Expert:
  """A base or a refiner, and the shapes of its parameters."""

  name: str  # '' or 'refiner '
  model: sdxl.SDXL
  params: Any  # {net: shapes with shardings}
  text_chunks: int = 1  # of each text, see pipelines.Pipeline
  offloaded: tuple[str, ...] = ()  # its nets that wait in host memory


class Phase(NamedTuple):
  """A program of a run of `generate`."""

  name: str
  expert: Expert  # whose nets run
  nets: Sequence[str]  # names of the nets that run
  # Traces the program: (mesh, workload, expert, params of the nets).
  trace: Callable[..., jax.stages.Traced]
  runs: float = 1.0  # of a batch; of the steps, the share that the net takes


def list_phases(
  experts: Sequence[Expert], workload: SampleWorkload
) -> list[Phase]:
  """Lists the programs of a base and, if there is one, its refiner.

  Text is encoded once more for guidance, and each device decodes its images one
  after another.
  """
  texts = 2 if workload.settings.guidance_scale > 1 else 1
  phases = [Phase('text', e, TEXT_ENCODERS, trace_text, texts) for e in experts]
  for i, expert in enumerate(experts):
    phases += step_phases(expert, workload, i, len(experts) > 1)
  return [
    *phases,
    Phase('decoding', experts[0], ('vae',), trace_decoding, workload.batch),
  ]


def step_phases(
  expert: Expert, workload: SampleWorkload, index: int, has_refiner: bool
) -> list[Phase]:
  """Lists the programs of an expert's steps: those guided, and the others.

  Args:
    expert: whose steps.
    workload: what to sample.
    index: of the expert; 1: the refiner.
    has_refiner: whether the steps are divided.
  """
  settings = workload.settings
  schedule = make_schedule(expert.model, workload)
  guided = step_segments.guided_steps(
    schedule.sigmas, settings.guidance_interval
  )
  guided &= validation.uses_cfg(expert.model, settings.guidance_scale)
  # Which of the steps are its own.
  taken = np.ones(len(guided), bool)
  if has_refiner:
    cut = sampling_schedule.steps_until(schedule, settings.refiner_start)
    taken = (np.arange(len(guided)) >= cut) == (index == 1)
  uses_both = guided.any() and not guided.all()
  phases = []
  for is_guided in (True, False):
    chosen = guided == is_guided
    if chosen.any():
      name = 'unguided steps' if uses_both and not is_guided else 'steps'
      trace = functools.partial(
        trace_steps, guided=is_guided, steps=int(chosen.sum())
      )
      share = (chosen & taken).sum() / chosen.sum()
      phases.append(Phase(name, expert, ('unet',), trace, float(share)))
  return phases


def make_schedule(
  model: sdxl.SDXL, workload: SampleWorkload
) -> sampling_schedule.SamplingSchedule:
  """Returns the noise levels of a run, spaced as without a scheduler's file."""
  return sampling_schedule.make_sampling_schedule(
    model.schedule,
    sampling_schedule.Spacing(
      'linspace' if model.schedule.is_flow else 'leading'
    ),
    workload.sampler,
    workload.settings.steps,
  )


def make_expert(
  config: ml_collections.ConfigDict,
  machine: machines.Machine,
  workload: SampleWorkload,
) -> Expert:
  """Makes the Expert of a config, with dtypes as in `pipelines.load`.

  Args:
    config: of a base or a refiner.
    machine: whose devices each have all parameters.
    workload: whose types the nets have.
  """
  # cuDNN's attention needs its library to be compiled, so plans for GPUs have
  # XLA's.
  platform = machine.platform
  attention = (
    'xla' if platform == 'gpu' else from_config.default_attention(platform)
  )
  model = from_config.make_model(config, platform)
  model = model.replace_each(
    {
      name: load_options.runtime_fields(
        name,
        workload.dtype,
        workload.vae_dtype,
        attention,
        workload.weights_dtype,
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
  guided: bool,
  steps: int,
) -> jax.stages.Traced:
  """Traces some steps, as if one of base and refiner took them alone.

  Args:
    mesh: of the devices.
    workload: what to sample.
    expert: whose UNet runs.
    params: of the UNet.
    guided: whether with classifier-free guidance.
    steps: how many.
  """
  model, settings = expert.model, workload.settings
  count = workload.batch * mesh.size
  shape = count, *initial_latents.latent_shape(model, workload.size)
  schedule = make_schedule(model, workload)

  def take(params, x, conditioning, schedule, keys):
    context = model.precompute_cross_attention_kv(params, conditioning.context)
    inputs = step_net.StepInputs(
      conditioning._replace(context=context),
      schedule,
      keys,
      step_net.Guidance(settings.guidance_scale, settings.guidance_rescale),
    )
    # The number of steps is static, so that their cost can be multiplied.
    return denoising_loop.denoise_steps(
      model,
      params,
      samplers.init_state(samplers.SAMPLERS[workload.sampler], x),
      inputs,
      start=0,
      stop=steps,
      sampler=workload.sampler,
      guided=guided,
    )

  def replicated(x):
    return rows(mesh, x.shape, x.dtype, sharding.replicated)

  schedule = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, schedule))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  return jax.jit(take).trace(
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
