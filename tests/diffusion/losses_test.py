"""The training loss against recorded numbers, and its randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import (
  loss_weights,
  losses,
  noise_schedule,
  sampler_traits,
  sigma_spacing,
  timestep_sampling,
  training_noise,
)
from tests.support import schedulers

EPS = noise_schedule.Schedule()
V = noise_schedule.Schedule(prediction='v')
X0 = noise_schedule.Schedule(prediction='x0')
ZERO = noise_schedule.Schedule(prediction='v', zero_terminal_snr=True)


@pytest.fixture(scope='module')
def recorded(golden):
  return np.load(golden / 'schedule' / 'forward_process.npz')


def rates_at(trained, timesteps):
  timesteps = timesteps.astype(int)
  return (r[timesteps, None, None, None] for r in losses.rates(trained))


@pytest.mark.parametrize('prefix, trained', [('', EPS), ('zsnr/', ZERO)])
def test_recorded_forward_process(recorded, close, prefix, trained):
  signal, noise = rates_at(trained, recorded['timesteps'])
  x0, eps = recorded['x0'], recorded['noise']
  noisy = losses.add_noise(x0, eps, signal, noise)
  close(noisy, recorded[prefix + 'add_noise'], 1e-5)
  v = losses.velocity(x0, eps, signal, noise)
  close(v, recorded[prefix + 'velocity'], 1e-5)


@pytest.mark.parametrize('prediction', ['eps', 'v'])
def test_recorded_min_snr_weights(recorded, close, prediction):
  signal, noise = rates_at(EPS, recorded['timesteps'])
  snr = np.ravel((signal / noise) ** 2)
  close(snr, recorded['snr'], 1e-5)
  prefix = f'min_snr_weight_{prediction}_gamma'
  names = [n for n in recorded.files if n.startswith(prefix)]
  assert names
  for name in names:
    weight = loss_weights.min_snr_weight(
      snr, float(name[len(prefix) :]), prediction
    )
    close(weight, recorded[name], 1e-5)


@pytest.mark.parametrize(
  'sampler', sorted({*schedulers.SAMPLERS.values()} - {'lcm', 'tcd'})
)
def test_recorded_noising_for_samplers(recorded, close, sampler):
  """Image-to-image starts from x0 + sigma eps, as training does."""
  name = f'sampler/{sampler.replace("euler_ancestral", "euler_a")}'
  trained = noise_schedule.trained_sigmas(EPS)
  timesteps = recorded[f'{name}/timesteps']
  sigmas = sigma_spacing.timesteps_to_sigmas(timesteps, trained)
  sigmas = sigmas[:, None, None, None]
  x0, eps = (recorded[array][: len(sigmas)] for array in ('x0', 'noise'))
  x, c_in = x0 + sigmas * eps, 1 / np.sqrt(1 + sigmas**2)
  if sampler_traits.SAMPLER_TRAITS[sampler].variance_preserving:
    close(x * c_in, recorded[f'{name}/add_noise'], 1e-5)
  else:
    close(x, recorded[f'{name}/add_noise'], 1e-5)
    close(x0 * c_in, recorded[f'{name}/scale_model_input'], 1e-5)


KEY = jax.random.key(5)


def settings(timestep_range=None, min_snr_gamma=None, **noise):
  return losses.LossSettings(
    timesteps=timestep_sampling.TimestepSampling(timestep_range),
    weighting=loss_weights.Weighting(min_snr_gamma=min_snr_gamma),
    noise=training_noise.Noise(**noise),
  )


def net_inputs(latents, trained=EPS, **options):
  """Returns the inputs of the net: x and timestep."""
  inputs = []

  def net(x, timestep):
    inputs.append((x, timestep))
    return x

  @jax.jit
  def run(latents):
    losses.diffusion_loss(net, latents, KEY, trained, settings(**options))
    return inputs.pop()

  return run(latents)


@pytest.mark.parametrize('trained', [EPS, V, X0, ZERO])
def test_a_perfect_net_has_no_loss(trained):
  x0 = jnp.full((6, 4, 4, 2), 0.6)
  signal, noise = losses.rates(trained)

  def net(x, timestep):
    a, s = signal[timestep, None, None, None], noise[timestep, None, None, None]
    eps = (x - a * x0) / s
    predicted = {'eps': eps, 'v': a * eps - s * x0, 'x0': x0}
    return predicted[trained.prediction]

  @jax.jit
  def value(scale):
    return losses.diffusion_loss(
      lambda x, timestep: scale * net(x, timestep), x0, KEY, trained
    )[0]

  assert value(1.0) < 1e-8
  assert 0.3 < value(0.0) < 2


def test_an_example_depends_on_its_row_alone():
  x, timestep = net_inputs(jnp.ones((8, 4, 4, 2)), offset_noise=0.3)
  fewer, fewer_timestep = net_inputs(jnp.ones((3, 4, 4, 2)), offset_noise=0.3)
  assert (x[:3] == fewer).all() and (timestep[:3] == fewer_timestep).all()
  assert len(np.unique(timestep)) > 4
  assert np.abs(x[0] - x[1]).max() > 0.1


def test_timestep_range():
  # A range of its own for SDXL's refiner; the upper end is not in it.
  _, timestep = net_inputs(jnp.zeros((500, 1, 1, 1)), timestep_range=(195, 200))
  assert set(timestep.tolist()) == {195, 196, 197, 198, 199}
  _, timestep = net_inputs(jnp.zeros((2000, 1, 1, 1)))
  assert timestep.min() < 10 and timestep.max() > 989
  assert abs(timestep.mean() - 499.5) < 25
  for bad in [(0, 1001), (200, 200), (-1, 10)]:
    with pytest.raises(ValueError, match='timestep_range'):
      net_inputs(jnp.zeros((1, 1, 1, 1)), timestep_range=bad)


def test_offset_noise_moves_each_channel_as_a_whole():
  latents = jnp.zeros((400, 2, 2, 3))
  last = dict(trained=ZERO, timestep_range=(999, 1000))  # noise alone
  plain, _ = net_inputs(latents, **last)
  moved, _ = net_inputs(latents, offset_noise=0.5, **last)
  offset = np.asarray(moved - plain)
  assert np.abs(offset - offset[:, :1, :1]).max() < 1e-6
  assert abs(offset[:, 0, 0].std() - 0.5) < 0.03


def test_min_snr_is_finite_at_zero_terminal_snr():
  snr = jnp.array([0.0, 1e-8, 1.0, 1e4])
  eps = loss_weights.min_snr_weight(snr, 5.0, 'eps')
  v = loss_weights.min_snr_weight(snr, 5.0, 'v')
  x0 = loss_weights.min_snr_weight(snr, 5.0, 'x0')
  assert np.allclose(eps, [1, 1, 1, 5e-4])
  assert np.allclose(v, [0, 1e-8, 0.5, 5 / 10001])
  assert np.allclose(x0, [0, 1e-8, 1, 5])


@pytest.mark.parametrize('trained', [EPS, V, X0])
def test_min_snr_weighs_each_example(trained):
  latents = jax.random.normal(KEY, (3, 4, 4, 2))

  @jax.jit
  def value(gamma):
    return losses.diffusion_loss(
      lambda x, timestep: 0 * x,
      latents,
      KEY,
      trained,
      settings(timestep_range=(20, 21), min_snr_gamma=gamma),
    )

  plain, _ = value(None)
  weighted, metrics = value(5.0)
  signal, noise = (r[20] for r in losses.rates(trained))
  snr = (signal / noise) ** 2
  weight = {'eps': 5 / snr, 'v': 5 / (snr + 1), 'x0': 5}[trained.prediction]
  assert weighted == pytest.approx(float(plain * weight), 1e-5)
  assert metrics['loss'] == weighted
  assert metrics['mse'] == pytest.approx(float(plain), 1e-6)


def test_bfloat16_net_and_gradients():
  latents = jax.random.normal(KEY, (4, 4, 4, 2))

  def value(scale):
    def net(x, timestep):
      return (scale * x).astype(jnp.bfloat16)

    return losses.diffusion_loss(
      net,
      latents.astype(jnp.bfloat16),
      KEY,
      ZERO,
      settings(min_snr_gamma=5.0),
    )[0]

  value, slope = jax.jit(jax.value_and_grad(value))(0.3)
  assert value.dtype == jnp.float32
  assert np.isfinite(value) and np.isfinite(slope)
