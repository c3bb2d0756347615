"""Denoisers of nets of each prediction, and guidance."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import (
  denoiser,
  guidance,
  noise_schedule,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import scheduler_config


def levels_of(prediction='eps', steps=10, sampler='euler', **spacing):
  trained = noise_schedule.Schedule(prediction=prediction)
  if trained.is_flow:
    spacing = {'kind': 'linspace'} | spacing
  return sampling_schedule.make_sampling_schedule(
    trained, sampling_schedule.Spacing(**spacing), sampler, steps
  )


@pytest.mark.parametrize('prediction', noise_schedule.PREDICTIONS)
@pytest.mark.parametrize('sigma', [0.03, 1.0, 14.6])
def test_a_perfect_net_gives_the_image(prediction, sigma):
  x0, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 2))
  x0, eps = np.float32(x0), np.float32(eps)
  alpha = 1 / np.sqrt(1 + sigma**2)
  target = {
    'eps': eps,
    'v': alpha * (eps - sigma * x0),
    'x0': x0,
    'flow': eps - x0,
  }[prediction]
  if prediction == 'flow':
    alpha = 1 / (1 + sigma)  # 1 - t

  def net(x, timestep):
    assert timestep.shape == (3,)
    np.testing.assert_allclose(x, alpha * (x0 + sigma * eps), rtol=1e-4)
    return target

  denoise = denoiser.make_denoiser(net, levels_of(prediction))
  assert np.abs(denoise(x0 + sigma * eps, sigma) - x0).max() < 1e-5


# That of a flow is another class, see flow_test.
@pytest.mark.torch
@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
def test_live_denoised(prediction):
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  trained = noise_schedule.Schedule(prediction=prediction)
  reference = diffusers.EulerDiscreteScheduler.from_config(
    scheduler_config.write(trained, sampling_schedule.Spacing())
  )
  reference.set_timesteps(5)
  x, predicted = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2))
  x, predicted = np.float32(3 * x), np.float32(predicted)
  step = reference.step(
    torch.from_numpy(predicted),
    reference.timesteps[0],
    torch.from_numpy(x),
  )
  levels = levels_of(prediction, steps=5)
  denoise = denoiser.make_denoiser(lambda x, t: predicted, levels)
  expected = step.pred_original_sample.numpy()
  assert np.allclose(denoise(x, levels.sigmas[0]), expected, rtol=1e-5)


@pytest.mark.parametrize(
  'spacing, sampler',
  [
    (dict(kind='leading'), 'euler'),
    (dict(kind='linspace'), 'euler'),
    (dict(kind='trailing', sigmas='karras'), 'heun'),
    (dict(sigmas='karras'), 'dpmpp_2m'),
  ],
)
def test_timesteps_are_exact_at_the_sigmas_of_the_run(spacing, sampler):
  levels = levels_of(steps=17, sampler=sampler, **spacing)

  @jax.jit
  def timesteps(levels):
    def timestep_of(sigma):
      return denoiser.timestep_of(sigma, levels)

    return jax.lax.map(timestep_of, levels.sigmas[:-1])

  assert (timesteps(levels) == levels.timesteps).all()


def test_timesteps_between_the_sigmas_of_the_run():
  levels = jax.tree.map(jnp.asarray, levels_of(steps=3))
  timesteps = jax.vmap(lambda s: denoiser.timestep_of(s, levels))(
    levels.trained_sigmas
  )
  assert np.abs(timesteps - np.arange(1000)).max() < 0.01
  s = jnp.sqrt(levels.trained_sigmas[400] * levels.trained_sigmas[401])
  assert abs(denoiser.timestep_of(s, levels) - 400.5) < 0.01


def test_channels_beside():
  """Neither made noisy nor scaled, and the same with and without prompt."""
  channels = jnp.arange(4.0).reshape(2, 1, 1, 2) * jnp.ones((2, 3, 3, 2))

  def net(x, timestep):
    assert x.shape == (4, 3, 3, 3)
    assert (x[::2] == x[1::2]).all() and (x[::2, ..., 1:] == channels).all()
    return x[..., :1]

  net = denoiser.concat_channels(
    guidance.classifier_free_guidance(net, 5.0), channels
  )
  levels = levels_of()
  x, sigma = jnp.ones((2, 3, 3, 1)), levels.sigmas[2]
  denoised = denoiser.make_denoiser(net, levels)(x, sigma)
  c_in = 1 / np.sqrt(1 + sigma**2)
  assert np.allclose(denoised, 1 - sigma * c_in, rtol=1e-5)


def test_guidance():
  uncond, cond = jnp.full((2, 3, 3, 1), 1.0), jnp.full((2, 3, 3, 1), 2.0)

  def net(x, timestep):
    assert x.shape == (4, 3, 3, 1)
    assert (timestep == jnp.array([7, 7, 8, 8])).all()
    assert (x[::2] == x[1::2]).all()
    return guidance.interleave_rows([uncond, cond])

  x, timestep = jnp.zeros((2, 3, 3, 1)), jnp.array([7.0, 8.0])
  assert (guidance.classifier_free_guidance(net, 5.0)(x, timestep) == 6).all()
  assert (guidance.classifier_free_guidance(net, 1.0)(x, timestep) == 2).all()
  assert (guidance.classifier_free_guidance(net, 0.0)(x, timestep) == 1).all()


def test_guidance_towards_several_prompts():
  shape, rng = (2, 3, 3, 1), np.random.default_rng(0)
  uncond, one, two = rng.normal(size=(3, *shape)).astype(np.float32)
  weights = np.float32([[1.2, -0.5], [1.0, 0.0]])

  def net(x, timestep):
    assert x.shape == (6, 3, 3, 1) and timestep.tolist() == [7] * 3 + [8] * 3
    return guidance.interleave_rows([uncond, one, two])

  guided = guidance.classifier_free_guidance(net, 5.0, 0.0, weights)
  found = guided(jnp.zeros(shape), jnp.array([7.0, 8.0]))
  w = weights[:, :, None, None, None]
  expected = uncond + 5 * (w[:, 0] * (one - uncond) + w[:, 1] * (two - uncond))
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(found[1], (5 * one - 4 * uncond)[1], atol=1e-5)


def test_rescale_restores_the_spread_of_each_image():
  key = jax.random.split(jax.random.key(0))
  cond = jax.random.normal(key[0], (3, 8, 8, 4))
  scales = jnp.array([2.0, 5.0, 9.0])[:, None, None, None]
  guided = scales * jax.random.normal(key[1], cond.shape)

  def std(x):
    return np.std(x, axis=(1, 2, 3))

  full = guidance.rescale_guidance(guided, cond, 1.0)
  assert np.allclose(std(full), std(cond), rtol=1e-5)
  assert (guidance.rescale_guidance(guided, cond, 0.0) == guided).all()
  # A net that starts from zero weights.
  zero = jnp.zeros_like(cond)
  assert (guidance.rescale_guidance(zero, zero, 0.7) == 0).all()


def test_recorded_guidance(golden, close):
  index = json.loads((golden / 'pipeline' / 'index.json').read_text())
  rescaled = 0
  for path in sorted((golden / 'pipeline').glob('t2i_*.npz')):
    call, run = index[path.stem]['call'], np.load(path)
    if call['gs'] <= 1 or 'unet0/out' not in run:
      continue
    recorded = guidance.interleave_rows(np.split(run['unet0/out'], 2))

    def net(x, timestep):
      return recorded  # noqa: B023

    guide = guidance.classifier_free_guidance(net, call['gs'], call['gr'])
    guided = guide(run['step0_sample'], jnp.zeros(call['B']))
    close(guided, run['model_output_steps'][0], 1e-5, path.stem)
    rescaled += call['gr'] > 0
  assert rescaled
