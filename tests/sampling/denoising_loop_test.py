"""Where the loop's state lies: one program takes all steps."""

import jax
import numpy as np

from sdxl_jax.checkpoints import loading
from sdxl_jax.diffusion import samplers
from sdxl_jax.sampling import denoising_loop, phase_clock


def test_the_state_lies_where_the_steps_leave_it():
  shape = {'unet': {'scale': jax.ShapeDtypeStruct((2,), np.float32)}}
  place = loading.make_sharding_fn(mesh=None)(shape)['unet']['scale'].sharding
  params = {'unet': {'scale': jax.device_put(np.ones(2, np.float32), place)}}
  x = np.ones((1, 4, 4, 2), np.float32)
  state = samplers.init_state(samplers.SAMPLERS['dpmpp_3m'], x)
  state = denoising_loop.place_state(state, params, mesh=None)

  @jax.jit
  def step(params, state):
    return jax.tree.map(lambda x: x + params['unet']['scale'][0], state)

  clock = phase_clock.PhaseClock()
  for _ in range(3):
    state = step(params, state)
  assert clock.programs == 1


def test_states_without_loaded_parameters_stay():
  x = np.ones((1, 4, 4, 2), np.float32)
  state = samplers.init_state(samplers.SAMPLERS['euler'], x)
  for params in ({'unet': x}, {'unet': jax.numpy.ones(2)}):
    assert denoising_loop.place_state(state, params, mesh=None) is state
