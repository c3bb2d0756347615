"""Which timesteps are trained how often.

A distribution is a probability for each timestep, from which a number in 0..1
draws one: all kinds differ in this table alone.
"""

import dataclasses
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from sdxl_jax.diffusion import noise_schedule

SAMPLINGS = ('uniform', 'logit_normal', 'sigmoid', 'weights', 'importance')
BIASES = ('none', 'earlier', 'later')


@dataclasses.dataclass(frozen=True)
class TimestepSampling:
  """Describes a distribution of timesteps."""

  # (low, high): low <= t < high; None: all of the schedule. SDXL's refiner was
  # trained on (0, 200).
  timestep_range: tuple[int, int] | None = None
  timestep_sampling: str = 'uniform'  # one of SAMPLINGS
  logit_mean: float = 0.0  # of 'logit_normal'; below 0 is less noise
  logit_std: float = 1.0  # of 'logit_normal'
  sigmoid_scale: float = 1.0  # of 'sigmoid'
  # Of 'weights': relative frequency of equal parts of the range.
  timestep_weights: tuple[float, ...] = ()
  # Of 'uniform': the first ('earlier', little noise) or last timesteps come
  # more often, by a factor, and are this share of the range.
  timestep_bias_strategy: str = 'none'  # one of BIASES
  timestep_bias_multiplier: float = 1.0
  timestep_bias_portion: float = 0.25

  def __post_init__(self):
    check = noise_schedule.check_choice
    check('timestep_sampling', self.timestep_sampling, SAMPLINGS)
    check('timestep_bias_strategy', self.timestep_bias_strategy, BIASES)

  @property
  def is_uniform(self) -> bool:
    """Whether all timesteps of the range have the same probability."""
    return (
      self.timestep_sampling == 'uniform'
      and self.timestep_bias_strategy == 'none'
    )

  @property
  def by_importance(self) -> bool:
    """Whether they are drawn by their loss, see timestep_importance."""
    return self.timestep_sampling == 'importance'

  def limits(self, num_train_timesteps: int) -> tuple[int, int]:
    """Returns (low, high) within a schedule; raises ValueError if not in it."""
    low, high = self.timestep_range or (0, num_train_timesteps)
    if not 0 <= low < high <= num_train_timesteps:
      raise ValueError(
        f'timestep_range is {(low, high)}; it must ascend and lie within 0 and '
        f'{num_train_timesteps}'
      )
    return low, high


def probabilities(
  sampling: TimestepSampling, count: int
) -> Float[np.ndarray, ' count']:
  """Returns the probability of each of the range's timesteps, float64.

  Args:
    sampling: the distribution, not by importance.
    count: timesteps in the range.
  """
  kind, shares = sampling.timestep_sampling, np.arange(count + 1) / count
  if kind == 'logit_normal':
    return logit_normal(shares, sampling.logit_mean, sampling.logit_std)
  # sigmoid(scale z) of a normal z has a normal logit.
  if kind == 'sigmoid':
    return logit_normal(shares, 0.0, sampling.sigmoid_scale)
  if kind == 'weights':
    parts = np.array(sampling.timestep_weights, np.float64)
    weights = parts[np.arange(count) * len(parts) // count]
  else:
    weights = bias_weights(sampling, count)
  return weights / weights.sum()


# Esser et al. 2024, Scaling Rectified Flow Transformers for High-Resolution
# Image Synthesis, equation 19.
def logit_normal(
  shares: Float[np.ndarray, ' n'], mean: float, std: float
) -> Float[np.ndarray, ' n_minus_1']:
  """Returns the probabilities between shares of which the logit is normal.

  Args:
    shares: ascending from 0 to 1.
    mean, std: of log(share / (1 - share)).
  """
  normal = statistics.NormalDist(mean, std)
  inner = [normal.cdf(x) for x in np.log(shares[1:-1] / (1 - shares[1:-1]))]
  return np.diff([0.0, *inner, 1.0])


def bias_weights(
  sampling: TimestepSampling, count: int
) -> Float[np.ndarray, ' count']:
  """Returns 1, and the multiplier where the bias is, as diffusers' script."""
  weights = np.ones(count)
  biased = int(sampling.timestep_bias_portion * count)
  multiplier = sampling.timestep_bias_multiplier
  if sampling.timestep_bias_strategy == 'earlier':
    weights[:biased] *= multiplier
  elif sampling.timestep_bias_strategy == 'later':
    weights[count - biased :] *= multiplier
  return weights


def sample(
  key: PRNGKeyArray,
  limits: tuple[int, int],
  table: Float[ArrayLike, ' count'] | None,
) -> Int[Array, '']:
  """Samples a timestep.

  Args:
    key: of this example.
    limits: (low, high) of the range.
    table: probability of each timestep of it; None: all have the same.
  """
  if table is None:
    return jax.random.randint(key, (), *limits)
  # The first timestep up to which the probabilities exceed the number. The sum
  # of all is 1 up to rounding, and those that cannot occur are never exceeded.
  bounds = cumulative(table)
  below = jax.random.uniform(key) * bounds[-1]
  return limits[0] + jnp.searchsorted(bounds[:-1], below, side='right').astype(
    jnp.int32
  )


def cumulative(table: Float[ArrayLike, ' n']) -> Float[Array, ' n']:
  """Returns the sums of the probabilities up to each timestep, float32."""
  if isinstance(table, np.ndarray):
    return jnp.float32(np.cumsum(table, dtype=np.float64))
  return jnp.cumsum(table)
