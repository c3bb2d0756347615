"""The sampler of a folder, and warnings about distilled weights."""

import dataclasses
import warnings

import pytest

from sdxl_jax.diffusion import noise_schedule, sampling_schedule
from sdxl_jax.sampling import generation, pipelines, sampler_choice
from sdxl_jax.sampling.settings import SampleSettings
from tests.support import golden_sets

BASE = golden_sets.SETS[0] / 'tiny' / 'base'
TURBO = {
  '_class_name': 'EulerAncestralDiscreteScheduler',
  'timestep_spacing': 'trailing',
}


@pytest.fixture(scope='module')
def base():
  return pipelines.load(BASE)


def with_scheduler(pipeline, **changes):
  """The pipeline with another scheduler_config.json."""
  scheduler = pipeline.scheduler | changes
  return dataclasses.replace(pipeline, scheduler=scheduler)


def warned(function, *args):
  """(the result, the text of the warnings)."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    result = function(*args)
  return result, [str(warning.message) for warning in caught]


class Stop(Exception):
  """Ends `generate` before anything is compiled."""


@pytest.mark.parametrize(
  'changes, options, sampler, spacing',
  [
    ({}, {}, 'euler', 'leading'),
    (TURBO, {}, 'euler_ancestral', 'trailing'),
    (TURBO, {'sampler': 'heun'}, 'heun', 'trailing'),
    (TURBO, {'spacing': 'linspace'}, 'euler_ancestral', 'linspace'),
    ({'_class_name': 'LCMScheduler'}, {}, 'lcm', 'leading'),
  ],
)
def test_the_folders_own_sampler_is_taken(
  base, changes, options, sampler, spacing, monkeypatch
):
  make_schedule = generation.make_schedule

  def stop(pipeline, chosen, size):
    raise Stop(chosen.sampler, make_schedule(pipeline, chosen, size))

  monkeypatch.setattr(generation, 'make_schedule', stop)
  pipeline = with_scheduler(base, **changes)
  options = options | dict(steps=4, guidance_scale=1.0, size=(64, 64))
  with pytest.raises(Stop) as stopped:
    generation.generate(pipeline, ['a fox'], **options)
  taken, schedule = stopped.value.args
  assert taken == sampler
  expected = sampling_schedule.make_sampling_schedule(
    noise_schedule.Schedule(), sampling_schedule.Spacing(spacing), sampler, 4
  )
  assert (schedule.sigmas == expected.sigmas).all()
  assert (schedule.sigmas_up == expected.sigmas_up).all()


def test_a_sampler_that_is_lacking_is_named(base):
  pipeline = with_scheduler(base, _class_name='PNDMScheduler')
  chosen, texts = warned(
    sampler_choice.resolve, pipeline, SampleSettings(steps=3)
  )
  assert chosen == SampleSettings(steps=3, sampler='euler')
  assert len(texts) == 1 and 'names PNDMScheduler' in texts[0]
  chosen, texts = warned(
    sampler_choice.resolve, pipeline, SampleSettings(sampler='heun')
  )
  assert chosen.sampler == 'heun' and not texts


@pytest.mark.parametrize(
  'changes, preset',
  [
    (TURBO, 'turbo'),
    ({'timestep_spacing': 'trailing'}, 'lightning'),
    ({'_class_name': 'LCMScheduler'}, 'lcm'),
    ({'_class_name': 'TCDScheduler'}, 'tcd'),
    ({}, None),
    ({'_class_name': 'EulerAncestralDiscreteScheduler'}, None),
    (
      {
        '_class_name': 'DPMSolverMultistepScheduler',
        'timestep_spacing': 'trailing',
      },
      None,
    ),
  ],
)
def test_distilled_weights_without_their_preset_are_reported(
  base, changes, preset
):
  pipeline = with_scheduler(base, **changes)
  for settings, suits in (
    (SampleSettings(steps=50, guidance_scale=5.0), False),
    (SampleSettings(steps=2, guidance_scale=5.0), False),
    (SampleSettings(steps=50, guidance_scale=1.0), False),
    (SampleSettings(steps=4, guidance_scale=1.0), True),
    (SampleSettings(steps=8, guidance_scale=2.0), True),
  ):
    _, texts = warned(sampler_choice.advise, pipeline, settings)
    assert len(texts) == (preset is not None and not suits)
    assert all(f'--preset {preset} ' in text for text in texts)


def test_bases_of_zero_snr_are_not_distilled(base):
  """Their spacing is that of distilled weights."""
  for changes in ({'zero_terminal_snr': True}, {'prediction': 'v'}):
    schedule = dataclasses.replace(base.model.schedule, **changes)
    model = dataclasses.replace(base.model, schedule=schedule)
    pipeline = with_scheduler(base, **TURBO)
    pipeline = dataclasses.replace(pipeline, model=model)
    assert sampler_choice.distilled_preset(pipeline) is None


def test_a_net_with_a_guidance_embedding_is_distilled(base):
  unet = dataclasses.replace(base.model.unet, guidance_embed_dim=256)
  model = dataclasses.replace(base.model, unet=unet)
  pipeline = dataclasses.replace(base, model=model)
  assert sampler_choice.distilled_preset(pipeline) == 'lcm'
  # Its guidance is an input of the net, and may be strong.
  settings = SampleSettings(steps=8, guidance_scale=8.0)
  assert not warned(sampler_choice.advise, pipeline, settings)[1]
