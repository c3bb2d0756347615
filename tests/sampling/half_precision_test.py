"""Sampling in float16 beside float32, step by step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.sampling import denoising_loop, generation, pipelines
from tests.sampling import generation_test
from tests.support import golden_sets, schedulers

FOLDER = golden_sets.SETS[0]
# Of the largest latent at each step, with a guidance scale of 8: beside float32
# of the same weights, and of weights that are not rounded. The weights of this
# base are random, and one prediction magnifies roundings: those of the weights
# to 4e-3, and those of diffusers' own float16 to 9e-3.
SAME_WEIGHTS, ROUNDED_WEIGHTS = 8e-3, 1e-2
RUN = 'handoff_euler_batch'  # base, then refiner


def load(dtype):
  """Base and refiner, their autoencoder in float32."""
  return [
    pipelines.load(FOLDER / 'tiny' / name, dtype, vae_dtype='float32')
    for name in ('base', 'refiner')
  ]


def widen(pipeline, model):
  """The weights of float16 in float32."""
  params = jax.tree.map(lambda x: x.astype(jnp.float32), pipeline.params)
  return dataclasses.replace(pipeline, model=model, params=params)


def steps_of(experts, name):
  """x after each step of a recorded run, float32 [steps, b, h, w, c]."""
  run = generation_test.RUNS[FOLDER, name]
  base, refiner = experts
  seen = []

  def report_step(watch, done_before, total, steps, state, running):
    seen.append(np.asarray(state.x))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(denoising_loop, 'report_step', report_step)
    _, latents = generation.generate(
      dataclasses.replace(base, scheduler=run['base/scheduler']),
      **generation_test.arguments(run['call']),
      sampler=schedulers.sampler_of(run['base/scheduler']),
      refiner=refiner,
      refiner_start=run['call']['cut'],
      watch=lambda *_: None,
    )
  assert all(x.dtype == np.float32 for x in (*seen, latents))
  return [*seen, latents]


def errors(some, others):
  """Largest difference at each step, of the largest latent there."""
  assert len(some) == len(others) > 1
  return [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(some, others)]


@pytest.mark.slow
def test_float16_at_each_step():
  whole, half = load('float32'), load('float16')
  rounded = [widen(b, a.model) for a, b in zip(whole, half)]
  found = steps_of(half, RUN)
  same = errors(found, steps_of(rounded, RUN))
  # Not so good that it could have been float32.
  assert 1e-5 < max(same) < SAME_WEIGHTS, same
  other = errors(found, steps_of(whole, RUN))
  assert max(other) < ROUNDED_WEIGHTS, other
