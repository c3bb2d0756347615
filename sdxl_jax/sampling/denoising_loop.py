"""The denoising loop: base and refiner each take segments of the steps."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sdxl_jax.diffusion import (
  denoiser,
  img2img,
  samplers,
  sampling_schedule,
)
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import sdxl
from sdxl_jax.programs import compile_progress
from sdxl_jax.sampling import (
  control_steps,
  initial_latents,
  pipelines,
  step_net,
  step_segments,
  validation,
)
from sdxl_jax.sampling.noise_streams import NoiseStream
from sdxl_jax.sampling.prompt_encoding import Conditioning
from sdxl_jax.sampling.settings import SampleSettings
from sdxl_jax.sampling.step_net import Guidance

Latents = Float[Array, 'b h w c']
# Of the steps done and those in all; the state after the former, and the one
# that is being computed by then.
Watch = Callable[[int, int, samplers.SamplerState, samplers.SamplerState], None]


class Expert(NamedTuple):
  """Base or refiner, with the inputs of its steps.

  Attributes:
    pipeline: of the model.
    inputs: of the first step.
    stages: the first step of each conditioning, in order from step 0 on.
    guided: of each step, whether the unconditional branch is computed too.
    controls: its ControlNets and their images; None: there are none.
  """

  pipeline: pipelines.Pipeline
  inputs: step_net.StepInputs
  stages: list[tuple[int, Conditioning]]
  guided: np.ndarray  # bool [n]
  controls: control_steps.Controls | None = None


def make_expert(
  pipeline: pipelines.Pipeline,
  stages: list[tuple[int, Conditioning]],
  weights: Float[Array, 'b n'] | None,
  schedule: sampling_schedule.SamplingSchedule,
  keys: Key[Array, ' b'],
  initial: initial_latents.InitialLatents,
  settings: SampleSettings,
  controls: control_steps.Controls | None = None,
) -> Expert:
  """Makes the Expert of a base or refiner.

  An inpainting UNet fills in the masked part by itself, from the channels that
  are concatenated to x; for others the known part is put back at each step.
  """
  is_inpainting = validation.is_inpainting_unet(pipeline.model)
  scale, rescale = settings.guidance_scale, settings.guidance_rescale
  inputs = step_net.StepInputs(
    stages[0][1],
    schedule,
    keys,
    Guidance(float(scale), float(rescale), weights),
    known=None if is_inpainting else initial.known,
    concat_channels=initial.concat_channels if is_inpainting else None,
  )
  guided = step_segments.guided_steps(
    schedule.sigmas, settings.guidance_interval
  )
  guided &= validation.uses_cfg(pipeline.model, scale)
  return Expert(pipeline, inputs, stages, guided, controls)


def run(
  experts: list[Expert],
  segments: list[step_segments.Segment],
  x: Latents,
  watch: Watch | None = None,
  watch_every: int = 1,
  warm_up: bool = False,
) -> Latents:
  """Takes all steps of all segments.

  Args:
    experts: base and, if there is one, refiner.
    segments: of `plan_segments`.
    x: initial latents at the noise level of the first segment's start.
    watch: called while the next steps run already; see `Watch`.
    watch_every: steps between two calls.
    warm_up: whether to take no step, but to compile what takes them.

  Returns:
    The latents of the images.
  """
  done, total = 0, sum(segment.steps for segment in segments)
  inputs = experts[segments[0].model_index].inputs
  for segment in segments:
    if segment.renoise:
      latents = finish(inputs.schedule, inputs.known, x)
      noise = samplers.draw_noise(
        inputs.keys, NoiseStream.REFINER_NOISE, x.shape
      )
      x = img2img.from_latents(latents, noise, inputs.schedule, segment.start)
    expert = experts[segment.model_index]
    report = None
    if watch is not None:
      report = functools.partial(report_step, watch, done, total)
    x = run_segment(expert, segment, x, report, watch_every, warm_up)
    done, inputs = done + segment.steps, expert.inputs
  return finish(inputs.schedule, inputs.known, x)


def report_step(
  watch: Watch,
  done_before: int,
  total: int,
  steps: int,
  state: samplers.SamplerState,
  running: samplers.SamplerState,
) -> None:
  """Calls `watch` once some steps of a segment are done."""
  state.x.block_until_ready()  # dispatched steps are not done yet
  watch(done_before + steps, total, state, running)


def run_segment(
  expert: Expert,
  segment: step_segments.Segment,
  x: Latents,
  report: Callable | None,
  report_every: int,
  warm_up: bool,
) -> Latents:
  """Takes the steps of one segment.

  Args:
    expert: the segment's.
    segment: its steps.
    x: latents at the noise level of its start.
    report: called as report(steps of the segment done, state, running state).
    report_every: steps between two calls.
    warm_up: see `run`.
  """
  pipeline, done = expert.pipeline, []
  nets = control_steps.nets_of(expert.controls)
  params = pipeline.on_device('unet', *nets)
  state = samplers.init_state(samplers.SAMPLERS[segment.sampler], x)
  state = place_state(state, params, pipeline.mesh)
  stride = report_every if report else max(1, segment.steps)
  height, width = (side * pipeline.model.vae.downscale for side in x.shape[1:3])
  name = f'the steps of {height} x {width} px'
  for stretch, inputs in stretches_of(expert, segment, params, stride):
    start, stop, _, is_guided = stretch
    with device_mesh.use(pipeline.mesh), compile_progress.naming(name):
      state = take_steps(
        pipeline.model,
        params,
        state,
        inputs,
        np.int32(start),
        np.int32(start if warm_up else stop),
        sampler=segment.sampler,
        guided=is_guided,
      )
    # The next steps are dispatched before, so that no device waits meanwhile.
    if done:
      report(*done.pop(), state)
    if report and (stop == segment.stop or not (stop - segment.start) % stride):
      done.append((stop - segment.start, state))
  if done:
    report(*done.pop(), state)
  # An offloaded UNet's parameters leave the device after this.
  return state.x.block_until_ready()


def stretches_of(
  expert: Expert,
  segment: step_segments.Segment,
  params: dict[str, Any],
  stride: int,
) -> Iterator[tuple[step_segments.Stretch, step_net.StepInputs]]:
  """Yields each stretch of a segment, with the inputs of its steps."""
  model, start, stop = expert.pipeline.model, segment.start, segment.stop
  # Cross-attention's keys and values are the same at every step of a stage, and
  # stages may come back.
  contexts = {}
  controls_at = control_steps.prepare(model, params, expert.controls)
  changes = control_steps.changes(expert.controls, start, stop)
  for stretch in step_segments.stretches(
    expert.stages, expert.guided, start, stop, stride, changes
  ):
    given = stretch.conditioning
    key = id(given.context)
    if key not in contexts:
      contexts[key] = precompute_context(model, params, given.context)
    made = given._replace(context=contexts[key])
    controls = controls_at(stretch.start, given.context)
    yield (
      stretch,
      dataclasses.replace(expert.inputs, conditioning=made, controls=controls),
    )


def place_state(
  state: samplers.SamplerState,
  params: dict[str, Any],
  mesh: jax.sharding.Mesh | None,
) -> samplers.SamplerState:
  """Returns the state where `take_steps` leaves it.

  Otherwise the second call would compile another program than the first: on a
  single device the first state is bound to none, and what is computed with
  loaded parameters is.
  """
  place = getattr(jax.tree.leaves(params)[0], 'sharding', None)
  if mesh is None and isinstance(place, jax.sharding.NamedSharding):
    return jax.device_put(state, sharding.replicated(place.mesh))
  return state


@functools.partial(jax.jit, static_argnames='model')
def precompute_context(
  model: sdxl.SDXL, params: dict[str, Any], context: Float[Array, 'n t c']
) -> dict[str, Any]:
  """Computes the keys and values of all cross-attention layers."""
  return model.precompute_cross_attention_kv(params, context)


def denoise_steps(
  model: sdxl.SDXL,
  params: dict[str, Any],
  state: samplers.SamplerState,
  inputs: step_net.StepInputs,
  start: int | Int[Array, ''],
  stop: int | Int[Array, ''],
  *,
  sampler: str,
  guided: bool,
) -> samplers.SamplerState:
  """Takes steps `start` to `stop` of a segment, guided or not."""
  net = step_net.make(
    model,
    params,
    inputs.conditioning,
    inputs.guidance,
    count=len(state.x),
    guided=guided,
    controls=inputs.controls,
  )
  if inputs.concat_channels is not None:
    net = denoiser.concat_channels(net, inputs.concat_channels)
  denoise = denoiser.make_denoiser(net, inputs.schedule)
  if inputs.known is not None:
    denoise = img2img.inpainting_denoiser(denoise, inputs.known)
  return samplers.run_steps(
    denoise,
    state,
    inputs.schedule,
    samplers.SAMPLERS[sampler],
    start,
    stop,
    keys=inputs.keys,
  )


# Compiled once per shape, sampler, number of all steps, and with guidance or
# without.
take_steps = jax.jit(
  denoise_steps, static_argnames=('model', 'sampler', 'guided')
)


@jax.jit
def finish(
  schedule: sampling_schedule.SamplingSchedule,
  known: img2img.KnownRegion | None,
  x: Latents,
) -> Latents:
  """Turns x of the last step into latents; a known region is put back."""
  latents = schedule.final_scale * x
  if known is None:
    return latents
  return known.mask * latents + (1 - known.mask) * known.latents
