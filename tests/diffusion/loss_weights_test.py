"""Weights of timesteps against the formulas of papers and sd-scripts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.diffusion import loss_weights, losses, noise_schedule
from tests.diffusion import losses_test

SNR = np.array([1e-4, 0.3, 1.0, 5.0, 20.0, 900.0, 4000.0])
LIMITED = np.minimum(SNR, 1000)
# {field: (value, {prediction: weight})}, as sd-scripts has them; soft Min-SNR
# and P2 from the papers, on x0 and on eps.
EXPECTED = {
  'min_snr_gamma': (
    5.0,
    {
      'eps': np.minimum(SNR, 5) / SNR,
      'v': np.minimum(SNR, 5) / (SNR + 1),
    },
  ),
  'soft_min_snr_gamma': (4.0, {'x0': 1 / (1 / SNR + 1 / 4.0)}),
  'p2_gamma': (0.5, {'eps': 1 / (2.0 + SNR) ** 0.5}),
  'debiased_estimation_loss': (
    True,
    {'eps': 1 / np.sqrt(LIMITED), 'v': 1 / (LIMITED + 1)},
  ),
  'scale_v_pred_loss_like_noise_pred': (
    True,
    {'v': LIMITED / (LIMITED + 1)},
  ),
}


@pytest.mark.parametrize('name', EXPECTED)
def test_formula(name, close):
  value, by_prediction = EXPECTED[name]
  weighting = loss_weights.Weighting(**{name: value}, p2_k=2.0)
  assert weighting.chosen == [name]
  for prediction, expected in by_prediction.items():
    found = loss_weights.weight(weighting, jnp.float32(SNR), prediction)
    close(found, expected, 1e-6)


@pytest.mark.parametrize(
  'name', ['min_snr_gamma', 'soft_min_snr_gamma', 'p2_gamma']
)
def test_predictions_of_one_image_weigh_alike(name, close):
  """Any prediction of the same x0 has the same weighted error."""
  weighting = loss_weights.Weighting(**{name: 2.0})
  signal, noise = (jnp.float32([0.9, 0.6, 0.2]), jnp.float32([0.2, 0.7, 0.9]))
  size = jnp.sqrt(signal**2 + noise**2)
  # Two images that make the same noisy one, each with its noise.
  x0, other, x = 0.3, 0.5, 0.7
  eps, other_eps = ((x - signal * i) / noise for i in (x0, other))

  def error(a, b, prediction):
    weight = loss_weights.weight(weighting, (signal / noise) ** 2, prediction)
    return weight * (a - b) ** 2

  expected = error(x0, other, 'x0')
  close(error(eps, other_eps, 'eps'), expected, 1e-5)
  close(error(eps - x0, other_eps - other, 'flow'), expected, 1e-5)
  v, other_v = (
    (signal * e - noise * i) / size for e, i in ((eps, x0), (other_eps, other))
  )
  close(error(v, other_v, 'v'), expected, 1e-5)


def test_none_is_chosen_by_default():
  assert loss_weights.Weighting().chosen == []


@pytest.mark.parametrize('name', EXPECTED)
@pytest.mark.parametrize('prediction', ['v', 'x0', 'flow'])
def test_no_signal(name, prediction):
  """At zero terminal SNR all weights are finite."""
  weighting = loss_weights.Weighting(**{name: EXPECTED[name][0]})
  weight = loss_weights.weight(weighting, jnp.zeros(1), prediction)
  kept = name == 'debiased_estimation_loss' and prediction == 'v'
  assert weight == (1.0 if kept else 0.0)


def test_the_loss_is_weighted():
  latents = jax.random.normal(losses_test.KEY, (3, 4, 4, 2))

  def value(weighting):
    settings = losses.LossSettings(
      weighting=weighting,
      timesteps=losses_test.settings(timestep_range=(20, 21)).timesteps,
    )
    run = jax.jit(losses.diffusion_loss, static_argnums=(0, 3, 4))
    return run(
      lambda x, t: 0 * x, latents, losses_test.KEY, losses_test.V, settings
    )

  plain, _ = value(loss_weights.Weighting())
  weighting = loss_weights.Weighting(p2_gamma=1.0, p2_k=3.0)
  weighted, metrics = value(weighting)
  a = noise_schedule.alphas_cumprod(losses_test.V)[20]
  snr = a / (1 - a)
  weight = snr / (snr + 1) / (3 + snr)
  assert weighted == pytest.approx(float(plain * weight), 1e-5)
  assert metrics['mse'] == pytest.approx(float(plain), 1e-6)
