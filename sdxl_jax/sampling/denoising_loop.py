"""One run of sampling: who takes which of its steps, and what he is told."""

import functools
from typing import NamedTuple

import jax
import numpy as np

from sdxl_jax.diffusion import (
  denoiser,
  guidance,
  img2img,
  samplers,
  sampling_schedule,
)
from sdxl_jax.distributed import device_mesh
from sdxl_jax.sampling import initial_latents, validation


class Turn(NamedTuple):
  """Steps in a row that one of the pipelines takes with one sampler."""

  who: int
  sampler: str
  start: int
  stop: int
  renewed: bool = False  # from what came before, made noisy again


def turns(levels, sampler, first, refiner_start=None, refiner_strength=None):
  """The Turns of a run from its step `first`.

  Args:
    levels: noise_levels.Levels of the run.
    sampler: its name.
    first: of its steps.
    refiner_start: share of all noise levels after which a refiner takes over.
    refiner_strength: the refiner goes over the base's picture instead.
  """
  steps = len(levels.timesteps)
  if refiner_strength is not None:
    again = img2img.first_step(steps, refiner_strength)
    return [
      Turn(0, sampler, first, steps),
      Turn(1, sampler, again, steps, renewed=True),
    ]
  if refiner_start is None:
    return [Turn(0, sampler, first, steps)]
  cut = max(first, sampling_schedule.steps_until(levels, refiner_start))
  if sampler != 'heun' or cut == first:
    return [Turn(0, sampler, first, cut), Turn(1, sampler, cut, steps)]
  # The reference stops between Heun's two calls, after Euler's step, and its
  # refiner takes that step once more.
  return [
    Turn(0, 'heun', first, cut - 1),
    Turn(0, 'euler', cut - 1, cut),
    Turn(1, 'heun', cut - 1, steps),
  ]


def condition(pipeline, rows, texts, sizes, negative_sizes, scales):
  """(context, vector) of all rows; guided, in pairs with those without prompt.

  These come first.
  """
  nets, guided = pipeline.nets, validation.uses_cfg(pipeline.nets, scales)
  towers = pipeline.on_device('text_encoder', 'text_encoder_2')
  encoded = nets.text.encode_prompts(
    *(towers, pipeline.tokenize),
    force_zeros=pipeline.force_zeros,
    guided=guided,
    place=rows.place,
    **texts,
  )
  told = [
    (context, vector(nets, pooled, like(pooled, sizes)))
    for (context, pooled), sizes in zip(encoded, (sizes, negative_sizes))
  ]
  told = (
    jax.tree.map(guidance.interleave_pairs, *told[::-1]) if guided else told[0]
  )
  return jax.block_until_ready(told)  # before the towers go


def like(pooled, sizes):
  """Sizes for every row of pooled text."""
  tile = lambda value: np.tile(np.float32(value), (len(pooled), 1))
  told = {name: tile(value) for name, value in sizes.items()}
  return told | {'aesthetic_score': told['aesthetic_score'][:, 0]}


@functools.partial(jax.jit, static_argnames='nets')
def vector(nets, pooled, sizes):
  return nets.vector(pooled, sizes)


@functools.partial(jax.jit, static_argnames='nets')
def project(nets, params, context):
  return nets.precompute_cross_attention_kv(params, context)


class Guidance(NamedTuple):
  """How far from the prediction without prompt; 1 or less: it is not asked."""

  scale: float
  rescale: float


def run(experts, told, plan, start, levels, keys, scales, watch=None, every=1):
  """Takes all steps of a plan.

  Args:
    experts: pipelines.Pipelines.
    told: (context, vector) of each.
    plan: list of Turns.
    start: beginning.Start.
    levels: noise_levels.Levels.
    keys: [b], one per image.
    scales: Guidance.
    watch: called as watch(steps done, steps in all, denoised), or None.
    every: steps between two calls.

  Returns:
    Latents [b, h, w, c].
  """
  x, done, total = start.x, 0, sum(t.stop - t.start for t in plan)
  kept = None
  for turn in plan:
    if turn.renewed:
      noise = samplers.draw_noise(keys, initial_latents.REFINING, x.shape)
      latents = finish(levels, kept, x)
      x = img2img.from_latents(latents, noise, levels, turn.start)
    # A net that sees the mask fills it in by itself.
    sees = validation.is_inpainting_unet(experts[turn.who].nets)
    kept, beside = (None, start.beside) if sees else (start.kept, None)
    seen = watch and (lambda i, *rest, done=done: watch(done + i, total, *rest))
    x = take(
      *(turn, experts[turn.who], told[turn.who], x, kept, beside, levels),
      *(keys, scales, seen, every),
    )
    done += turn.stop - turn.start
  return finish(levels, kept, x)


def take(
  turn, expert, told, x, kept, beside, levels, keys, scales, watch, every
):
  """Takes the steps of one Turn; arguments as `run` and `advance` have them."""
  nets, params = expert.nets, expert.on_device('unet')
  context, *rest = told
  # The same at every step, so the words are projected once for all of them.
  told = project(nets, params, context), *rest
  carry = samplers.init_state(samplers.SAMPLERS[turn.sampler], x)
  leap = every if watch else turn.stop - turn.start
  for i in range(turn.start, turn.stop, leap or 1):
    stop = min(i + leap, turn.stop)
    with device_mesh.use(expert.mesh):
      carry = advance(
        *(nets, params, carry, told, levels, keys),
        *(np.int32(i), np.int32(stop), scales, kept, beside),
        sampler=turn.sampler,
        guided=validation.uses_cfg(nets, scales),
      )
    if watch:
      carry.x.block_until_ready()  # what is dispatched is not done
      watch(stop - turn.start, carry.denoised)
  return carry.x.block_until_ready()  # before the net goes


@functools.partial(jax.jit, static_argnames=('nets', 'sampler', 'guided'))
def advance(
  nets,
  params,
  carry,
  told,
  levels,
  keys,
  start,
  stop,
  scales,
  kept,
  beside,
  *,
  sampler,
  guided,
):
  """Some steps of a turn.

  Compiled once per shape, sampler and number of all steps.
  """
  net = nets.denoiser(params, *told, scales.scale)
  if guided:
    net = guidance.classifier_free_guidance(net, *scales)
  if beside is not None:
    net = denoiser.concat_channels(net, beside)
  denoise = denoiser.make_denoiser(net, levels)
  if kept is not None:
    denoise = img2img.inpainting_denoiser(denoise, kept)
  sampler = samplers.SAMPLERS[sampler]
  return samplers.run_steps(
    denoise, carry, levels, sampler, start, stop, keys=keys
  )


@jax.jit
def finish(levels, kept, x):
  """x of the last step > latents, with what was kept of a picture."""
  latents = levels.final_scale * x
  if kept is None:
    return latents
  return kept.mask * latents + (1 - kept.mask) * kept.latents
