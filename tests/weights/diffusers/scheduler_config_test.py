"""The sampler that a scheduler_config.json names."""

import re

import pytest

from sdxl_jax.diffusion import (
  noise_schedule,
  sampler_traits,
  sampling_schedule,
)
from sdxl_jax.weights.diffusers import scheduler_config

EULER = scheduler_config.write(
  noise_schedule.Schedule(), sampling_schedule.Spacing()
)
SDE = {'algorithm_type': 'sde-dpmsolver++'}


@pytest.mark.parametrize(
  'named, options, sampler',
  [
    ('EulerDiscreteScheduler', {'clip_sample': True}, 'euler'),
    ('EulerAncestralDiscreteScheduler', {}, 'euler_ancestral'),
    ('HeunDiscreteScheduler', {}, 'heun'),
    ('KDPM2DiscreteScheduler', {}, 'dpm_2'),
    ('KDPM2AncestralDiscreteScheduler', {}, 'dpm_2_ancestral'),
    ('LMSDiscreteScheduler', {}, 'lms'),
    ('DDIMScheduler', {}, 'ddim'),
    ('DDPMScheduler', {}, 'ddpm'),
    ('DPMSolverMultistepScheduler', {}, 'dpmpp_2m'),
    ('DPMSolverMultistepScheduler', {'solver_order': 1}, 'dpmpp_2m'),
    ('DPMSolverMultistepScheduler', {'solver_order': 3}, 'dpmpp_3m'),
    ('DPMSolverMultistepScheduler', {'solver_type': 'bh2'}, 'dpmpp_2m'),
    ('DPMSolverMultistepScheduler', {'solver_type': 'heun'}, 'dpmpp_2m_heun'),
    ('DPMSolverMultistepScheduler', {'algorithm_type': 'deis'}, 'dpmpp_2m'),
    ('DPMSolverMultistepScheduler', SDE, 'dpmpp_2m_sde'),
    (
      'DPMSolverMultistepScheduler',
      SDE | {'solver_type': 'heun'},
      'dpmpp_2m_sde_heun',
    ),
    ('DPMSolverSinglestepScheduler', {}, 'dpmpp_2s'),
    ('DPMSolverSDEScheduler', {}, 'dpmpp_sde'),
    ('DEISMultistepScheduler', {'algorithm_type': 'deis'}, 'deis'),
    ('UniPCMultistepScheduler', {}, 'unipc'),
    ('LCMScheduler', {'original_inference_steps': 50}, 'lcm'),
    ('TCDScheduler', {}, 'tcd'),
  ],
)
def test_classes_of_diffusers(named, options, sampler):
  config = EULER | {'_class_name': named} | options
  assert scheduler_config.sampler_of(config) == (sampler, None)
  schedule, spacing = scheduler_config.read(config, sampler)
  sampling_schedule.make_sampling_schedule(schedule, spacing, sampler, 4)


@pytest.mark.parametrize(
  'named, options, reason',
  [
    ('PNDMScheduler', {}, 'names PNDMScheduler, which is not implemented'),
    ('SASolverScheduler', {}, 'names SASolverScheduler'),
    (
      'DPMSolverMultistepScheduler',
      {'algorithm_type': 'dpmsolver'},
      'with algorithm_type dpmsolver, solver_order 2',
    ),
    (
      'DPMSolverSinglestepScheduler',
      {'solver_order': 3},
      'solver_order 3, solver_type midpoint, which is not implemented',
    ),
    ('DPMSolverMultistepScheduler', {'use_lu_lambdas': True}, 'use_lu_lambdas'),
    ('UniPCMultistepScheduler', {'solver_type': 'bh1'}, "solver_type .* 'bh1'"),
    ('DDIMScheduler', {'clip_sample': True}, 'clip_sample .* is True'),
    (
      'DDPMScheduler',
      {'variance_type': 'learned'},
      "variance_type .*'learned'",
    ),
  ],
)
def test_what_is_taken_instead(named, options, reason):
  config = EULER | {'_class_name': named} | options
  sampler, note = scheduler_config.sampler_of(config)
  assert sampler == 'euler'
  assert re.search(reason, note)
  assert 'euler is taken; --sampler chooses another' in note
  assert '\n' not in note
  scheduler_config.read(config, sampler)  # Euler has no such options


def test_a_third_order_sde_is_that_of_k_diffusion():
  options = {'_class_name': 'DPMSolverMultistepScheduler', 'solver_order': 3}
  sampler, note = scheduler_config.sampler_of(EULER | SDE | options)
  assert sampler == 'dpmpp_3m_sde' and "k-diffusion's step is taken" in note


def test_without_a_class_it_is_euler():
  config = {k: v for k, v in EULER.items() if k != '_class_name'}
  assert scheduler_config.sampler_of(config) == ('euler', None)


@pytest.mark.parametrize(
  'named, spacing',
  [('DDIMScheduler', 'leading'), ('KDPM2DiscreteScheduler', 'linspace')],
)
def test_defaults_of_the_classes(named, spacing):
  missing = 'timestep_spacing', 'prediction_type', 'steps_offset'
  config = {k: v for k, v in EULER.items() if k not in missing}
  config |= {'_class_name': named}
  sampler, _ = scheduler_config.sampler_of(config)
  trained, found = scheduler_config.read(config, sampler)
  assert (found.kind, found.steps_offset) == (spacing, 0)
  assert trained.prediction == 'eps'


@pytest.mark.parametrize('sigmas', ['karras', 'exponential', 'beta'])
def test_sigmas_of_a_config(sigmas):
  config = EULER | {f'use_{sigmas}_sigmas': True}
  for sampler in sampler_traits.SAMPLER_TRAITS:
    _, spacing = scheduler_config.read(config, sampler)
    fixed = sampler in scheduler_config.TRAINED_ONLY
    assert spacing.sigmas == ('trained' if fixed else sigmas)


@pytest.mark.parametrize(
  'options, last',
  [
    ({'solver_order': 3}, [3, 3, 2, 1]),
    ({'solver_order': 3, 'lower_order_final': False}, [3, 3, 3, 3]),
    (
      {'solver_order': 3, 'lower_order_final': False, 'euler_at_final': True},
      [3, 3, 3, 1],
    ),
    ({'solver_order': 1}, [1, 1, 1, 1]),
  ],
)
def test_orders_of_a_config(options, last):
  named = 'DPMSolverMultistepScheduler'
  config = EULER | {'_class_name': named} | options
  sampler, _ = scheduler_config.sampler_of(config)
  settings = scheduler_config.read(config, sampler)
  schedule = sampling_schedule.make_sampling_schedule(*settings, sampler, 9)
  orders = schedule.orders[-4:]
  if options['solver_order'] == 3:
    orders = orders.clip(max=3)  # the sampler's own
  assert orders.tolist() == last
