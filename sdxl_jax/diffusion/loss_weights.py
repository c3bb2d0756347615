"""Weights of timesteps in the loss, as functions of the signal-to-noise ratio.

snr is the ratio of variances, alpha^2 / sigma^2 of a noisy latent alpha x0 +
sigma eps. The squared error in x0, eps, v and a flow differ by a factor that
depends on it alone, see `of_x0_error`; so a weight that a paper gives for one
of them holds for the others.
"""

import dataclasses
import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

# In the two weights that are sd-scripts' own.
LARGEST_SNR = 1000.0

Gamma = Float[ArrayLike, '']


@dataclasses.dataclass(frozen=True)
class Weighting:
  """Describes the weights; by default all timesteps have the same."""

  min_snr_gamma: Gamma | None = None  # None: off, as below
  soft_min_snr_gamma: Gamma | None = None
  p2_gamma: Gamma | None = None
  p2_k: Gamma = 1.0
  debiased_estimation_loss: bool = False
  scale_v_pred_loss_like_noise_pred: bool = False

  @property
  def chosen(self) -> list[str]:
    """Names of the weights that are on; the loss has their product."""
    values = {
      'min_snr_gamma': self.min_snr_gamma is not None,
      'soft_min_snr_gamma': self.soft_min_snr_gamma is not None,
      'p2_gamma': self.p2_gamma is not None,
      'debiased_estimation_loss': self.debiased_estimation_loss,
      'scale_v_pred_loss_like_noise_pred': (
        self.scale_v_pred_loss_like_noise_pred
      ),
    }
    return [name for name, is_on in values.items() if is_on]


def weight(
  weighting: Weighting, snr: Float[ArrayLike, ' b'], prediction: str
) -> Float[Array, ' b']:
  """Returns the weight of each example's error in the prediction.

  Args:
    weighting: with one weight at least.
    snr: of each example.
    prediction: one of noise_schedule.PREDICTIONS.
  """
  w = weighting
  functions = {
    'min_snr_gamma': lambda: min_snr_weight(snr, w.min_snr_gamma, prediction),
    'soft_min_snr_gamma': lambda: soft_min_snr_weight(
      snr, w.soft_min_snr_gamma, prediction
    ),
    'p2_gamma': lambda: p2_weight(snr, w.p2_gamma, w.p2_k, prediction),
    'debiased_estimation_loss': lambda: debiased_weight(snr, prediction),
    'scale_v_pred_loss_like_noise_pred': lambda: v_like_eps_weight(snr),
  }
  factors = [functions[name]() for name in weighting.chosen]
  return functools.reduce(operator.mul, factors)


# Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting.
def min_snr_weight(
  snr: Float[ArrayLike, ' b'], gamma: Gamma, prediction: str
) -> Float[Array, ' b']:
  """Returns the weight of the error in the prediction.

  It is min(snr, gamma) for the error in x0, converted to the prediction. It is
  finite at zero terminal SNR, where v, x0 and flow have no weight.
  """
  if prediction == 'eps':  # finite without signal
    return jnp.minimum(1, gamma / snr)
  return of_x0_error(jnp.minimum(snr, gamma), snr, prediction)


# Crowson et al. 2024, Scalable High-Resolution Pixel-Space Image Synthesis with
# Hourglass Diffusion Transformers, soft-min-snr: 1 / (sigma^2 + 1 / gamma).
def soft_min_snr_weight(
  snr: Float[ArrayLike, ' b'], gamma: Gamma, prediction: str
) -> Float[Array, ' b']:
  """Returns the weight of Min-SNR without its corner; gamma is 4 in the paper.

  It is snr gamma / (snr + gamma) for the error in x0.
  """
  if prediction == 'eps':
    return gamma / (snr + gamma)
  return of_x0_error(snr * gamma / (snr + gamma), snr, prediction)


# Choi et al. 2022, Perception Prioritized Training of Diffusion Models,
# equation 8, on the simple loss, which is the error in eps.
def p2_weight(
  snr: Float[ArrayLike, ' b'],
  gamma: Gamma,
  k: Gamma,
  prediction: str,
) -> Float[Array, ' b']:
  """Returns 1 / (k + snr)^gamma for the error in eps, converted."""
  eps = 1 / (k + snr) ** gamma
  return eps if prediction == 'eps' else of_x0_error(snr * eps, snr, prediction)


# Yu et al. 2023, Unmasking Bias in Diffusion Model Training: 1 / sqrt(snr) on
# the error in eps; for v the formula is sd-scripts' own.
def debiased_weight(
  snr: Float[ArrayLike, ' b'], prediction: str
) -> Float[Array, ' b']:
  """Returns the weight of debiased estimation, of an snr of 1000 at most.

  It is 1 / sqrt(snr) for the error in eps, and so sqrt(snr) for that in x0.
  """
  snr = jnp.minimum(snr, LARGEST_SNR)
  if prediction == 'eps':
    return 1 / jnp.sqrt(snr)
  if prediction == 'v':
    return 1 / (snr + 1)
  return of_x0_error(jnp.sqrt(snr), snr, prediction)


def v_like_eps_weight(snr: Float[ArrayLike, ' b']) -> Float[Array, ' b']:
  """Returns snr / (snr + 1), by which the error in v is that in eps."""
  snr = jnp.minimum(snr, LARGEST_SNR)
  return snr / (snr + 1)


def of_x0_error(
  weight: Float[ArrayLike, ' b'], snr: Float[ArrayLike, ' b'], prediction: str
) -> Float[ArrayLike, ' b']:
  """Converts a weight of the error in x0 to one of that in the prediction.

  Where x = alpha x0 + sigma eps is given, an error of d in x0 is one of
  sqrt(snr) d in eps; of sqrt(1 + snr) d in v = alpha eps - sigma x0, where
  alpha^2 + sigma^2 = 1; and of (1 + sqrt(snr)) d in the flow, eps - x0.
  """
  if prediction == 'x0':
    return weight
  if prediction == 'v':
    return weight / (snr + 1)
  if prediction == 'flow':
    return weight / jnp.square(1 + jnp.sqrt(snr))
  return weight / snr
