"""What drawing needs of a device: the programs of `generate`, compiled ahead.

Text, steps and decoding follow one another. While one runs, the parameters of
all nets lie on the device beside it; of an offloaded pipeline only its own do.

SDXL's base and refiner in bfloat16, their autoencoder in float32, with guidance
at 1024 px: 14.3 of the 15.8 GiB of a TPU v5e, and 6.5 where they are offloaded
(--topology v5e:1x1 --refiner configs/refiner.py --dtype bfloat16).
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
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
)

GIB = 2**30
TOWERS = 'text_encoder', 'text_encoder_2'


@dataclasses.dataclass(frozen=True)
class SampleWorkload:
  """What is to be drawn, as the flags of the command call it."""

  batch: int = 1  # pictures of each device
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
  """What one program needs, per device unless said otherwise."""

  name: str
  memory: int  # bytes at the peak, all that lives then
  parameters: int  # bytes of them, those of idle nets included
  flops: float  # per picture
  seconds: float | None  # of a batch
  compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Expert:
  """A base or a refiner: its nets, and where their parameters would lie."""

  name: str  # '' or 'refiner '
  nets: sdxl.SDXL
  params: Any  # {net: shapes with shardings}


def plan(machine, configs, asked):
  """[Phase] of a run, in its order.

  Args:
    machine: machines.Machine; pictures are shared out by its devices, and each
      has all parameters.
    configs: of the base and, if there is one, of the refiner.
    asked: Asked.
  """
  experts = [make_expert(config, machine, asked) for config in configs]
  resident = sum(machines.bytes_of(expert.params) for expert in experts)
  base, jobs = experts[0], []
  for expert in experts:
    jobs.append((expert, 'text', TOWERS, trace_text))
  for expert in experts:
    jobs.append((expert, 'steps', ('unet',), trace_steps))
  jobs.append((base, 'decoding', ('vae',), trace_decoding))
  bar = tqdm.tqdm(jobs, desc='compiling', unit='program')
  return [
    measure(machine, asked, expert, name, nets, trace, resident)
    for expert, name, nets, trace in bar
  ]


def make_expert(config, machine, asked):
  """The Expert that a config describes, as `pipelines.load` would load it."""
  # Asking cuDNN needs its device, so GPUs are planned with XLA's attention.
  platform = machine.platform
  attention = (
    'xla' if platform == 'gpu' else from_config.default_attention(platform)
  )
  nets = from_config.make_model(config, platform)
  nets = nets.replace_each(
    {
      name: pipelines.runtime_fields(
        name, asked.dtype, asked.vae_dtype, attention
      )
      for name in nets.configs
    }
  )
  params = jax.eval_shape(nets.init, jax.random.key(0))
  params = {name: params[name] for name in nets.configs}
  params = sharding.with_shardings(params, machine.mesh)
  return Expert('refiner ' if nets.refiner else '', nets, params)


def measure(machine, asked, expert, name, nets, trace, resident):
  """The Phase of a program."""
  params = {n: expert.params[n] for n in nets if n in expert.params}
  started = time.monotonic()
  with device_mesh.use(machine.mesh):
    traced = trace(machine.mesh, asked, expert, params)
    compiled = traced.lower().compile(machine.options)
  compile_seconds = time.monotonic() - started
  own = machines.bytes_of(params)
  idle = 0 if asked.offload else resident - own
  pictures = asked.batch * machine.size
  return PhaseCost(
    name=expert.name + name,
    memory=cost.memory(compiled).peak + idle,
    parameters=own + idle,
    flops=cost.flops(traced.jaxpr) / pictures,
    seconds=machine.seconds(compiled.as_text(), traced.jaxpr),
    compile_seconds=compile_seconds,
  )


def rows(mesh, shape, dtype='float32', place=sharding.batch_sharding):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=place(mesh))


def trace_text(mesh, asked, expert, params):
  """Of a batch's prompts; those of the opposite are another run of it."""
  tokens = rows(mesh, (asked.batch * mesh.size, 2, 77), 'int32')
  encode = text_encoder.TextEncoder.encode
  return encode.trace(expert.nets.text, params, tokens)


def trace_steps(mesh, asked, expert, params):
  """Of all steps, as one of the two experts takes them."""
  nets, count = expert.nets, asked.batch * mesh.size
  shape = count, *initial_latents.latent_shape(nets, asked.size)
  sampler = samplers.SAMPLERS[asked.sampler]
  schedule = sampling_schedule.make_sampling_schedule(
    nets.schedule, sampling_schedule.Spacing(), asked.sampler, asked.steps
  )

  def steps(params, x, context, vector, schedule, keys):
    context = nets.precompute_cross_attention_kv(params, context)
    inputs = denoising_loop.StepInputs(
      prompt_encoding.Conditioning(context, vector),
      schedule,
      keys,
      denoising_loop.Guidance(5.0, 0.0),
    )
    return denoising_loop.denoise_steps(
      nets,
      params,
      samplers.init_state(sampler, x),
      inputs,
      0,
      asked.steps,
      sampler=asked.sampler,
      guided=asked.guided,
    )

  def replicated(x):
    return rows(mesh, x.shape, x.dtype, sharding.replicated)

  schedule = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, schedule))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
  return jax.jit(steps).trace(
    params,
    rows(mesh, shape),
    *told_shapes(mesh, asked, expert),
    jax.tree.map(replicated, schedule),
    rows(mesh, keys.shape, keys.dtype),
  )


def told_shapes(mesh, asked, expert):
  """(context, vector) of a batch, in pairs where it is guided."""
  nets = expert.nets
  count = asked.batch * mesh.size * (2 if asked.guided else 1)
  context = count, 77, nets.unet.context_dim
  return (
    rows(mesh, context, asked.dtype),
    rows(mesh, (count, nets.unet.vector_dim)),
  )


def trace_decoding(mesh, asked, expert, params):
  """Of one picture a device, as `coding` decodes a batch."""
  shape = mesh.size, *initial_latents.latent_shape(expert.nets, asked.size)
  x = rows(mesh, shape)
  return vae_batches.decode.trace(expert.nets, params, x, asked.tile)


COLUMNS = (
  ('phase', lambda p: p.name),
  ('GiB', lambda p: f'{p.memory / GIB:.1f}'),
  ('of parameters', lambda p: f'{p.parameters / GIB:.1f}'),
  ('TFLOP/image', lambda p: f'{p.flops / 1e12:.1f}'),
  ('seconds', lambda p: f'{p.seconds:.2f}' if p.seconds else '?'),
  ('compiled in s', lambda p: f'{p.compile_seconds:.0f}'),
)


def report(phases, machine, asked):
  """All that the command prints, as text."""
  chip = machine.chip
  limit = (
    f'{chip.memory / GIB:.1f} GiB each' if chip.memory else 'no limit known'
  )
  return '\n'.join(
    [
      f'{machine.size} x {chip.name}, {limit}; {asked.batch} x '
      f'{asked.size[0]} x {asked.size[1]} px on each, {asked.steps} steps of '
      f'{asked.sampler}{" with guidance" * asked.guided}, {asked.dtype}, '
      f'autoencoder {asked.vae_dtype}{", offloaded" * asked.offload}',
      cost.table(COLUMNS, phases),
      machines.ESTIMATE_METHOD[machine.platform],
      verdict(phases, machine, asked),
    ]
  )


def verdict(phases, machine, asked):
  worst = max(phases, key=lambda p: p.memory)
  if machine.chip.memory is None:
    return f'Most is taken by {worst.name}: {worst.memory / GIB:.2f} GiB.'
  share = worst.memory / machine.chip.memory
  where = f'{worst.name} takes {share:.0%} of the memory of a device'
  if machine.fits(worst.memory):
    return f'It fits: {where}.'
  limit = f'{1 - machines.MEMORY_HEADROOM:.0%} is the limit'
  return f'It does not fit: {where}, {limit}. {remedy(worst, asked)}'


def remedy(worst, asked):
  """What to change first, by what it costs."""
  if asked.dtype == 'float32':
    return 'Set --dtype=bfloat16.'
  if worst.name == 'decoding' and asked.tile is None:
    return 'Set --tile=256.'
  if not asked.offload:
    return 'Set --offload.'
  if asked.batch > 1:
    return f'Set --batch={asked.batch // 2}.'
  return 'Take a device with more memory, or draw smaller pictures.'
