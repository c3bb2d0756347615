"""A whole run of a sampler in one call."""

from sdxl_jax.diffusion import samplers


def sample(denoise, x, schedule, sampler, *, keys=None, noise=None):
  """Takes x at schedule.sigmas[0] to x at schedule.sigmas[-1]."""
  state, steps = samplers.init_state(sampler, x), len(schedule.sigmas) - 1
  return samplers.run_steps(
    denoise, state, schedule, sampler, 0, steps, keys=keys, noise=noise
  ).x
