"""Weights of rectified flow: which files have them, and what reads them."""

import dataclasses
import json
import shutil

import pytest

from sdxl_jax.diffusion import noise_schedule
from sdxl_jax.weights import formats, read_options
from sdxl_jax.weights.diffusers import (
  flow_config,
  scheduler_config,
  scheduler_defaults,
)
from sdxl_jax.weights.single_file import ldm_writer
from tests.support import golden_sets

TINY = golden_sets.SETS[0] / 'tiny'
FLOW = noise_schedule.Schedule(prediction='flow', shift=3.0)


@pytest.fixture
def folder(tmp_path):
  """A diffusers folder of a flow, as others write it: with the shift alone."""
  copy = shutil.copytree(TINY / 'base', tmp_path / 'flow')
  config = {'_class_name': flow_config.EULER, 'shift': 3.0}
  path = copy / 'scheduler' / 'scheduler_config.json'
  path.write_text(json.dumps(config))
  return copy


def test_a_folder_is_read(folder):
  model = formats.open_model(folder)
  assert model.scheduler['prediction_type'] == 'flow_prediction'
  trained, spacing = scheduler_config.read(model.scheduler, 'euler')
  assert (trained, spacing.kind) == (FLOW, 'linspace')
  assert scheduler_config.sampler_of(model.scheduler) == ('euler', None)


def test_a_single_file_has_no_word_for_it(folder):
  model = formats.open_model(folder)
  with pytest.raises(ValueError, match="predicts 'flow_prediction', and a sin"):
    ldm_writer.metadata(model, 'title')


def test_what_the_user_decides(folder):
  """Flows of any file by a flag, and other predictions of a flow's folder."""
  plain = scheduler_defaults.SDXL
  said = read_options.ReadOptions(prediction='flow')
  schedule, _ = scheduler_config.read(said.schedule(plain), 'euler')
  assert schedule == dataclasses.replace(FLOW, shift=1.0)
  stored = formats.open_model(folder).scheduler
  assert said.schedule(stored) == stored
  said = read_options.ReadOptions(prediction='v')
  assert said.schedule(stored) == plain | {'prediction_type': 'v_prediction'}
  said = read_options.ReadOptions(prediction='flow', zero_snr=True)
  with pytest.raises(ValueError, match='ends in pure noise anyway: leave it'):
    said.schedule(plain)


@pytest.mark.torch
def test_solvers_of_diffusers_take_the_shift():
  """By from_config of another class, which has fields of its own for it."""
  diffusers = pytest.importorskip('diffusers')
  written = flow_config.write(FLOW)
  solver = diffusers.UniPCMultistepScheduler.from_config(written)
  assert solver.config.prediction_type == 'flow_prediction'
  assert solver.config.use_flow_sigmas and solver.config.flow_shift == 3.0
