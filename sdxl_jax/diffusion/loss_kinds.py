"""How far a prediction is from its target: squared, absolute or Huber.

Names and formulas are those of kohya's sd-scripts. Both Huber losses are
squares where an error is small next to a constant c, and grow linearly where it
is large, so that few outlying pixels do not rule the gradient. c may follow the
timestep.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from sdxl_jax.diffusion import noise_schedule

LOSS_TYPES = ('l2', 'l1', 'huber', 'smooth_l1')
WITH_C = ('huber', 'smooth_l1')
HUBER_SCHEDULES = ('snr', 'exponential', 'constant')


@dataclasses.dataclass(frozen=True)
class Distance:
  """Describes the distance; the defaults but `loss_type` are sd-scripts'."""

  loss_type: str = 'l2'  # one of LOSS_TYPES
  huber_schedule: str = 'snr'  # of c over timesteps, one of HUBER_SCHEDULES
  huber_c: float = 0.1  # see `huber_constant`
  huber_scale: float = 1.0  # multiplies c, but with 'snr'

  def __post_init__(self):
    check = noise_schedule.check_choice
    check('loss_type', self.loss_type, LOSS_TYPES)
    check('huber_schedule', self.huber_schedule, HUBER_SCHEDULES)


# Khrapov et al. 2024, Improving Diffusion Models's Data-Corruption Resistance
# using Scheduled Pseudo-Huber Loss: c as a function of the timestep.
def huber_constant(
  distance: Distance,
  timestep: Int[ArrayLike, ' b'],
  sigma: Float[ArrayLike, ' b'],
  num_train_timesteps: int,
) -> Float[Array, ' b']:
  """Computes c of each example.

  Args:
    distance: its huber_c is c itself with 'constant'; with 'exponential' c
      falls from 1 at timestep 0 to it at the end; with 'snr' it is what c falls
      to as the noise grows.
    timestep: of each example.
    sigma: noise level of each example, infinite for noise alone.
    num_train_timesteps: of the schedule.
  """
  c, scale = distance.huber_c, distance.huber_scale
  if distance.huber_schedule == 'exponential':
    alpha = -math.log(c) / num_train_timesteps
    return jnp.exp(-alpha * jnp.float32(timestep)) * scale
  if distance.huber_schedule == 'snr':
    return (1 - c) / (1 + sigma) ** 2 + c
  return jnp.full(jnp.shape(timestep), c * scale, jnp.float32)


# The pseudo-Huber function, as in Song & Dhariwal 2023, Improved Techniques for
# Training Consistency Models, equation 7, of each number by itself.
def pointwise(
  loss_type: str,
  difference: Float[Array, 'b h w c'],
  c: Float[ArrayLike, 'b 1 1 1'] | None = None,
) -> Float[Array, 'b h w c']:
  """Returns the loss of each number of a prediction.

  Args:
    loss_type: one of LOSS_TYPES.
    difference: prediction minus target.
    c: for those of WITH_C. 'huber' is close to 2 c |difference| for large
      differences and 'smooth_l1' to 2 |difference|; for small ones they are
      the square, and the square divided by c.
  """
  square = jnp.square(difference)
  if loss_type == 'l2':
    return square
  if loss_type == 'l1':
    return jnp.abs(difference)
  root = jnp.sqrt(square + c**2) - c
  return 2 * c * root if loss_type == 'huber' else 2 * root
