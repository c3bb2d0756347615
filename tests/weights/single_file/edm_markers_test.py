"""Marks of continuous noise levels in single files."""

import dataclasses
import json

import numpy as np
import pytest

from sdxl_jax.checkpoints import source_checks
from sdxl_jax.weights import formats, read_options, safetensors_file
from sdxl_jax.weights.diffusers import edm_config
from sdxl_jax.weights.single_file import edm_markers, ldm_reader, ldm_writer
from tests.support import random_nets

BASE = random_nets.TINY / 'base'
MEAN, STD = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
PLAYGROUND = {'edm_mean': [[[[x]], *[]] for x in MEAN], 'edm_std': STD}
COSXL = {'edm_vpred.sigma_max': 120.0, 'edm_vpred.sigma_min': 0.002}


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
  """make(marks) > a single file of the tiny base without our metadata."""
  model = formats.open_model(BASE)
  folder = tmp_path_factory.mktemp('files')

  def make(marks, metadata=None):
    tensors = ldm_writer.tensors(model) | {
      name: safetensors_file.from_array(np.float32(x))
      for name, x in marks.items()
    }
    path = folder / f'{len(list(folder.iterdir()))}.safetensors'
    safetensors_file.write(path, tensors, metadata=metadata or {})
    return formats.open_model(path, base=model)

  return make


def test_playground(foreign):
  model = foreign(PLAYGROUND)
  assert model.scheduler == edm_config.PLAYGROUND
  config = model.net('vae').config()
  assert config.scaling_factor == 0.5
  assert config.latents_mean == tuple(MEAN)
  assert config.latents_std == tuple(STD)
  # Other entries of modelspec do not count against the marks.
  words = {'modelspec.prediction_type': 'epsilon'}
  assert foreign(PLAYGROUND, words).scheduler == edm_config.PLAYGROUND


def test_cosxl(foreign):
  model = foreign(COSXL)
  assert model.scheduler == edm_config.COSXL
  assert model.net('vae').config().latents_mean is None
  model = foreign({'edm_vpred.sigma_max': 80.0})  # as ComfyUI's default
  assert model.scheduler == edm_config.COSXL | {'sigma_max': 80.0}


@pytest.mark.parametrize(
  'marks,match',
  [
    ({'edm_mean': MEAN}, 'edm_mean without edm_std'),
    ({'edm_std': STD}, 'edm_std without edm_mean'),
    ({'edm_vpred.sigma_min': 0.1}, 'edm_vpred.sigma_min without'),
    ({'edm_mean': MEAN, 'edm_std': [1.0, 0.0, 1.0, 1.0]}, 'edm_std is .*0.0'),
    ({'edm_mean': [], 'edm_std': []}, r'edm_mean is \[\], which cannot'),
    ({'edm_vpred.sigma_max': -1.0}, 'sigma_max is .-1.0., which cannot'),
  ],
)
def test_marks_that_cannot_be(foreign, marks, match):
  with pytest.raises(ValueError, match=match):
    foreign(marks)


@pytest.mark.parametrize('marks', [PLAYGROUND, COSXL])
def test_marks_are_written_again(foreign, tmp_path, marks):
  """With the digits that they had, so that the file stays the same."""
  model, path = foreign(marks), tmp_path / 'again.safetensors'
  ldm_writer.save(path, model)
  file = safetensors_file.load(path)
  for name, values in marks.items():
    stored = file.tensors[name].read()
    np.testing.assert_array_equal(stored, np.float32(values))
  assert not {'v_pred', 'ztsnr'} & set(file.tensors)
  assert 'modelspec.prediction_type' not in file.metadata
  again = formats.open_model(path)
  assert again.scheduler == model.scheduler
  assert again.net('vae').config() == model.net('vae').config()
  # And by programs that do not know our metadata.
  metadata = {n: x for n, x in file.metadata.items() if n != ldm_reader.OURS}
  read = edm_markers.read(file.tensors, 'here')
  assert read.scheduler == model.scheduler
  assert json.dumps(metadata)


def test_how_a_marked_net_is_sampled_stays(foreign, tmp_path):
  """Our metadata has it; the marks of another net come before that."""
  model, path = foreign(COSXL), tmp_path / 'a.safetensors'
  chosen = model.scheduler | {'sigma_schedule': 'karras', 'rho': 5.0}
  ldm_writer.save(path, dataclasses.replace(model, scheduler=chosen))
  assert formats.open_model(path).scheduler == chosen
  file = safetensors_file.load(path)
  other = safetensors_file.from_array(np.float32(80.0))
  tensors = file.tensors | {'edm_vpred.sigma_max': other}
  safetensors_file.write(tmp_path / 'b', tensors, metadata=file.metadata)
  scheduler = formats.open_model(tmp_path / 'b').scheduler
  assert scheduler == edm_config.COSXL | {'sigma_max': 80.0}


def test_other_levels_have_no_marks(foreign):
  model = foreign(COSXL)
  scheduler = model.scheduler | {'sigma_data': 0.7}
  model = dataclasses.replace(model, scheduler=scheduler)
  with pytest.raises(ValueError, match='marks for those of Playground'):
    ldm_writer.tensors(model)


def test_the_user_decides_where_a_file_is_not_marked(foreign):
  stored = foreign({}).scheduler
  for word, scheduler in edm_config.PUBLISHED.items():
    options = read_options.ReadOptions(prediction=word)
    assert options.schedule(stored) == scheduler
  # v and eps decide the sign alone, on the levels that are marked.
  options = read_options.ReadOptions(prediction='eps')
  decided = options.schedule(foreign(COSXL).scheduler)
  assert decided == edm_config.COSXL | {'prediction_type': 'epsilon'}
  options = read_options.ReadOptions(prediction='edm_v', zero_snr=True)
  with pytest.raises(ValueError, match='continuous noise levels'):
    options.schedule(stored)


def test_no_training_from_continuous_levels(foreign):
  model = foreign(COSXL)
  with pytest.raises(ValueError, match='can be sampled, not trained'):
    source_checks.check_timesteps(model)
  source_checks.check_timesteps(foreign({}))
