"""The conventions of each sampler: where its steps end, and on which levels."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Levels = Float[np.ndarray, ' levels']  # of n steps: n + 1
Timesteps = Float[np.ndarray, ' n']
TrainedSigmas = Float[np.ndarray, ' timesteps']  # ascending

NO_LIMIT = 4  # the highest order that any step has


def no_churn(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Returns the next sigmas: deterministic samplers add no noise."""
  del timesteps, trained, eta
  return sigmas[1:]


# Song et al. 2020, Denoising Diffusion Implicit Models, equation 16, in terms
# of sigma; the ancestral step of k-diffusion is the same, and with eta 1 also
# that of Ho et al. 2020, Denoising Diffusion Probabilistic Models, equation 7.
def ancestral_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Replaces a share eta of the noise that ancestral sampling replaces."""
  del timesteps, trained
  r = sigmas[1:] / sigmas[:-1]
  return sigmas[1:] * np.sqrt(1 - eta**2 + (eta * r) ** 2)


# Lu et al. 2022, DPM-Solver++, SDE-DPM-Solver++(2M), which has eta 1.
def sde_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Follows the reverse SDE without its noise; eta as in k-diffusion."""
  del timesteps, trained
  return sigmas[1:] * (sigmas[1:] / sigmas[:-1]) ** eta


# Luo et al. 2023, Latent Consistency Models, algorithm 3. The reference keeps a
# share of x, which is below 1e-5, for the net's boundary condition.
def consistency_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Goes all the way to the image, then noises it again."""
  del timesteps, trained, eta
  return np.zeros(len(sigmas) - 1)


# Zheng et al. 2024, Trajectory Consistency Distillation, algorithm 4.
def trajectory_sigma_down(
  sigmas: Levels, timesteps: Timesteps, trained: TrainedSigmas, eta: float
) -> Timesteps:
  """Goes to a share 1 - eta of the next timestep; eta is the paper's gamma."""
  target = np.floor((1 - eta) * timesteps[1:]).astype(int)
  return np.append(trained[target], sigmas[-1])


@dataclasses.dataclass(frozen=True)
class SamplerTraits:
  """Describes the conventions of a sampler's diffusers scheduler."""

  integer_timesteps: bool = False  # fractional timesteps are rounded
  integer_if_karras: bool = False  # the same, for Karras's sigmas alone
  timestep_for_end: bool = False  # the end of the run uses up a timestep
  respace_all_trained: bool = False  # between all trained sigmas, not the run's
  variance_preserving: bool = False  # x has variance 1 at the start and the end
  terminal_sigma: float = 4096.0  # in place of the infinite sigma of zero SNR
  needs_timesteps: bool = False  # sigmas alone do not do
  distilled_timesteps: int = 0  # number the net was distilled on; 0: all
  sigma_down: Callable = no_churn  # where each step ends before fresh noise
  eta: float = 0.0  # the default; `sigma_down` defines its meaning
  order: int = NO_LIMIT  # of a step, at most
  in_pairs: bool = False  # each second step goes on from two steps before
  lower_order_final: bool = False  # in the last steps of runs below 15
  order_of_long_steps: int = NO_LIMIT  # of those at zero SNR, at most


ANCESTRAL = SamplerTraits(sigma_down=ancestral_sigma_down, eta=1.0)
# The slope (x - denoised) / sigma of a later call is multiplied by the length
# of the whole step. From zero SNR's stand-in for infinity that is hundreds
# times the error of a net's result, and depends on the stand-in, while Euler's
# step has a limit: denoised + sigma_next * noise.
SECOND_ORDER_IN_SIGMA = SamplerTraits(order_of_long_steps=1)
MULTISTEP = SamplerTraits(
  integer_timesteps=True,
  timestep_for_end=True,
  respace_all_trained=True,
  variance_preserving=True,
  lower_order_final=True,
)
SDE = dataclasses.replace(MULTISTEP, sigma_down=sde_sigma_down, eta=1.0)
DDIM = SamplerTraits(
  needs_timesteps=True,
  integer_timesteps=True,
  variance_preserving=True,
  terminal_sigma=1e6,  # as good as infinite; its square still is a float32
  sigma_down=ancestral_sigma_down,
)
SAMPLER_TRAITS = {
  'euler': SamplerTraits(),
  'euler_ancestral': ANCESTRAL,
  'heun': SECOND_ORDER_IN_SIGMA,
  'dpm_2': dataclasses.replace(SECOND_ORDER_IN_SIGMA, integer_if_karras=True),
  'dpm_2_ancestral': dataclasses.replace(
    ANCESTRAL, integer_if_karras=True, order_of_long_steps=1
  ),
  'lms': SamplerTraits(),
  'ddim': DDIM,
  'ddpm': dataclasses.replace(DDIM, eta=1.0),
  'dpmpp_2m': MULTISTEP,
  'dpmpp_2m_sde': SDE,
  'dpmpp_2m_heun': dataclasses.replace(MULTISTEP, order=2),
  'dpmpp_2m_sde_heun': dataclasses.replace(SDE, order=2),
  'dpmpp_3m': MULTISTEP,
  # As in k-diffusion.
  'dpmpp_3m_sde': dataclasses.replace(
    SDE, lower_order_final=False, order_of_long_steps=2
  ),
  'dpmpp_2s': dataclasses.replace(MULTISTEP, in_pairs=True),
  'dpmpp_2s_ancestral': ANCESTRAL,
  'dpmpp_sde': ANCESTRAL,
  'deis': MULTISTEP,
  'unipc': MULTISTEP,
  'lcm': dataclasses.replace(
    DDIM, distilled_timesteps=50, sigma_down=consistency_sigma_down
  ),
  'tcd': dataclasses.replace(
    DDIM, distilled_timesteps=50, sigma_down=trajectory_sigma_down, eta=0.3
  ),
}


def check_eta(sampler: str, eta: float | None) -> None:
  """Raises ValueError for an eta that a sampler does not take.

  Args:
    sampler: its name.
    eta: None: the sampler's default.
  """
  if eta is None:
    return
  # Only some samplers take an eta.
  if SAMPLER_TRAITS[sampler].sigma_down in (no_churn, consistency_sigma_down):
    raise ValueError(f'eta is {eta}, but {sampler} has none: leave it out')
  if not 0 <= eta <= 1:
    raise ValueError(f'eta is {eta}; it must be from 0 to 1')
