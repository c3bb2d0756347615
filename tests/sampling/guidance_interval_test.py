"""Guidance in an interval of noise levels, beside steps taken by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import denoiser, guidance, img2img, samplers
from sdxl_jax.planning import cost
from sdxl_jax.sampling import (
  denoising_loop,
  generation,
  pipelines,
  prompt_encoding,
  sampler_choice,
  settings,
)
from sdxl_jax.sampling.noise_streams import NoiseStream
from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny'
INTERVAL = 0.5, 4.0
SMALL = dict(size=(64, 64), steps=6, guidance_scale=6.0)
PAIR = dict(prompts=['a fox', 'a pig'], negative_prompts=['bad', ''])


@pytest.fixture(scope='module')
def base():
  return pipelines.load(TINY / 'base')


@pytest.fixture(scope='module')
def refiner():
  return pipelines.load(TINY / 'refiner')


def sample(pipeline, prompts, **options):
  """Returns the latents, and the arguments of the loop."""
  run, seen = denoising_loop.run, []

  def watched(*args):
    seen.append(args[:3])
    return run(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(denoising_loop, 'run', watched)
    _, latents = generation.generate(pipeline, prompts, **SMALL | options)
  return latents, seen[0]


@pytest.fixture(scope='module')
def sampled(base):
  return sample(base, guidance_interval=INTERVAL, guidance_rescale=0.5, **PAIR)


@pytest.fixture(scope='module')
def everywhere(base):
  return sample(base, guidance_rescale=0.5, **PAIR)[0]


@functools.partial(jax.jit, static_argnames='model')
def predict(model, params, x, timestep, context, vector):
  return model.denoiser(params, context, vector)(x, timestep)


def branches(pipeline, conditioning, how, guided, xp=jnp):
  """Makes the net of a step from a call of the UNet for each branch."""

  def net(x, timestep):
    count = len(conditioning.vector) // len(x)
    rows = xp.stack(
      [
        predict(
          pipeline.model,
          pipeline.params,
          x,
          timestep,
          conditioning.context[i::count],
          conditioning.vector[i::count],
        )
        for i in range(count)
      ]
    )
    weights = how.weights
    weights = xp.ones((len(x), 1)) if weights is None else xp.asarray(weights)
    weights = weights.T[..., None, None, None]
    uncond, conds = rows[0], rows[1:]
    if not guided:
      weights = xp.maximum(weights, 0)
      return (weights * conds).sum(0) / weights.sum(0)
    cond = uncond + (weights * (conds - uncond)).sum(0)
    found = uncond + how.scale * (cond - uncond)
    ratio = cond.std((1, 2, 3), ddof=1) / found.std((1, 2, 3), ddof=1)
    rescaled = ratio[:, None, None, None] * found
    return how.rescale * rescaled + (1 - how.rescale) * found

  return net


def test_a_run_beside_a_loop_in_numpy(sampled, everywhere):
  latents, (((pipeline, inputs, stages, guided, _),), _, x) = sampled
  schedule, ((_, conditioning),), x = inputs.schedule, stages, np.asarray(x)
  sigmas, low_high = schedule.sigmas, []
  for i, sigma in enumerate(sigmas[:-1]):
    inside = INTERVAL[0] < sigma <= INTERVAL[1]
    low_high.append(inside)
    net = branches(pipeline, conditioning, inputs.guidance, inside, np)
    timestep = np.full(len(x), schedule.timesteps[i])
    eps = net(x / np.sqrt(1 + sigma**2), timestep)
    x = x + eps * (sigmas[i + 1] - sigma)  # Euler's method
  assert low_high == guided.tolist() and 0 < sum(low_high) < len(guided)
  scale = np.abs(x).max()
  assert np.abs(latents - x).max() < 2e-5 * scale
  assert np.abs(latents - everywhere).max() > 1e-3 * scale


def test_an_interval_of_all_levels_changes_no_bit(base, everywhere):
  found, _ = sample(
    base, guidance_interval=(0.0, 1e6), guidance_rescale=0.5, **PAIR
  )
  np.testing.assert_array_equal(found, everywhere)


def test_steps_outside_cost_half(sampled):
  """The unconditional rows are not computed, rather than masked."""
  _, (((pipeline, inputs, *_),), _, x) = sampled
  state = samplers.init_state(samplers.SAMPLERS['euler'], x)
  flops = {}
  for guided in (True, False):
    traced = jax.jit(
      functools.partial(
        denoising_loop.denoise_steps,
        pipeline.model,
        start=0,
        stop=4,
        sampler='euler',
        guided=guided,
      )
    ).trace(pipeline.params, state, inputs)
    flops[guided] = cost.flops(traced.jaxpr)
  assert flops[True] == 2 * flops[False] > 0


def step_of(expert, sampler):
  """Makes (state, i, conditioning, guided) -> the state after step i."""
  pipeline, inputs, *_ = expert

  @functools.partial(jax.jit, static_argnames='guided')
  def step(state, i, conditioning, guided):
    net = branches(pipeline, conditioning, inputs.guidance, guided)
    denoise = denoiser.make_denoiser(net, inputs.schedule)
    if inputs.known is not None:
      denoise = img2img.inpainting_denoiser(denoise, inputs.known)
    return samplers.run_steps(
      denoise, state, inputs.schedule, sampler, i, i + 1, keys=inputs.keys
    )

  return step


def test_the_mean_of_parts():
  """Of their weights above 0, whichever way the rows of the batch lie."""

  def net(x, timestep):
    assert x.shape == (6, 1, 1, 1) and timestep.tolist() == [7] * 3 + [9] * 3
    return x * jnp.arange(1.0, 7).reshape(6, 1, 1, 1)

  weights = np.float32([[1, 3, -5], [0, 0.5, 0]])
  found = guidance.average_net(net, weights)(
    jnp.ones((2, 1, 1, 1)), jnp.array([7.0, 9.0])
  )
  np.testing.assert_allclose(found[:, 0, 0, 0], [(1 + 3 * 2) / 4, 5])


def test_the_conditional_rows():
  """Of words, and of keys and values that a scan has stacked."""
  rows = np.arange(6).reshape(6, 1, 1) * np.ones((6, 2, 3))
  found = prompt_encoding.conditional(
    prompt_encoding.Conditioning(
      {'k': jnp.stack([rows, rows + 10]), 'v': jnp.asarray(rows)}, rows[:, 0]
    ),
    branches=3,
  )
  kept = [1, 2, 4, 5]
  np.testing.assert_array_equal(found.vector, rows[kept, 0])
  np.testing.assert_array_equal(found.context['v'], rows[kept])
  np.testing.assert_array_equal(
    found.context['k'], np.stack([rows[kept], rows[kept] + 10])
  )


def by_hand(experts, segments, x):
  """Takes the steps one by one, with a call of the net for each branch."""
  before = None
  for segment in segments:
    expert = experts[segment.model_index]
    schedule, keys = expert.inputs.schedule, expert.inputs.keys
    if segment.renoise:
      noise = samplers.draw_noise(keys, NoiseStream.REFINER_NOISE, x.shape)
      latents = before.schedule.final_scale * x
      x = img2img.from_latents(latents, noise, schedule, segment.start)
    sampler = samplers.SAMPLERS[segment.sampler]
    step, state = step_of(expert, sampler), samplers.init_state(sampler, x)
    for i in range(segment.start, segment.stop):
      _, conditioning = [s for s in expert.stages if s[0] <= i][-1]
      guided = bool(INTERVAL[0] < schedule.sigmas[i] <= INTERVAL[1])
      state = step(state, i, conditioning, guided)
    x, before = state.x, expert.inputs
  return np.asarray(denoising_loop.finish(before.schedule, before.known, x))


def check(pipeline, **options):
  """Compares a run with its steps taken by hand."""
  latents, run = sample(pipeline, guidance_interval=INTERVAL, **options)
  guided = run[0][0].guided
  assert guided.any() and not guided.all()
  expected = by_hand(*run)
  assert np.abs(latents - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize('sampler', ['heun', 'dpmpp_3m_sde'])
def test_samplers(base, sampler):
  """Of two calls of the net, with a history, and with noise."""
  check(base, sampler=sampler, **PAIR)


@pytest.mark.slow
def test_prompts_that_are_combined_or_change(base):
  prompts = ['a fox :1.5 AND a [hat:pig:0.5]', 'a AND b :-0.2']
  check(base, prompts=prompts, weighted_prompts=True)


@pytest.mark.slow
def test_refiners_images_and_masks(base, refiner):
  check(base, refiner=refiner, refiner_start=0.5, **PAIR)
  check(base, refiner=refiner, refiner_strength=0.5, **PAIR)
  mask = np.zeros((64, 64))
  mask[:, 24:] = 1
  latents = np.random.default_rng(1).normal(size=(8, 8, 4)).astype(np.float32)
  check(base, latents=latents, mask=mask, strength=0.9, **PAIR)


def test_parts_that_no_mean_has(base):
  with pytest.raises(ValueError, match='give one of them a weight above 0'):
    generation.generate(
      base,
      ['a :0 AND b :-1'],
      weighted_prompts=True,
      guidance_interval=INTERVAL,
    )


@pytest.mark.parametrize(
  'value, message',
  [
    ((4.0, 0.5), r'guidance_interval is 4,0.5; .* the lower one first'),
    ((-1.0, 5.0), 'guidance_interval is -1,5; it must be two noise levels'),
    ((1.0, 1.0), 'it must be two noise levels'),
    ((0.0, float('inf')), 'both must be finite'),
  ],
)
def test_values_that_are_none(value, message):
  with pytest.raises(ValueError, match=message):
    settings.SampleSettings(guidance_interval=value)


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(guidance_interval=(20.0, 30.0)), 'no step begins in it, .* from 1'),
    (
      dict(guidance_scale=1.0, guidance_interval=(1.0, 2.0)),
      'guidance_interval 1,2 is of no use: guidance is off at guidance_scale 1',
    ),
  ],
)
def test_intervals_of_no_use_are_named(base, options, message):
  chosen = settings.SampleSettings(**{'sampler': 'euler', **options})
  schedule = generation.make_schedule(base, chosen, (64, 64))
  with pytest.warns(sampler_choice.SamplerWarning, match=message):
    sampler_choice.advise_interval(base, chosen, schedule)
