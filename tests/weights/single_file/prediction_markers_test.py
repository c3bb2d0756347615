"""Marks of prediction and zero SNR in single files, alone and against others"""

import pathlib

import numpy as np
import pytest

from sdxl_jax.weights import formats, read_options, safetensors_file
from sdxl_jax.weights.single_file import prediction_markers
from tests.support import conversions, golden_sets

SPEC = 'modelspec.prediction_type'
V, EPSILON = 'v_prediction', 'epsilon'
EMPTY = safetensors_file.from_array(np.zeros(0, np.float32))


def read(names=(), metadata=None, **settings):
  tensors = dict.fromkeys(names, EMPTY)
  path = pathlib.Path('a.safetensors')
  file = safetensors_file.TensorFile(path, tensors, metadata or {})
  return prediction_markers.read(file, **settings)


@pytest.mark.parametrize(
  'names, metadata, prediction, zero_snr',
  [
    ((), {}, None, False),
    (['v_pred'], {}, V, False),
    (['v_pred', 'ztsnr'], {}, V, True),
    ((), {SPEC: 'V-Prediction'}, V, False),
    ((), {SPEC: 'v-zsnr'}, V, True),
    (['ztsnr'], {SPEC: 'v'}, V, True),
    ((), {SPEC: 'epsilon'}, EPSILON, False),
    ((), {SPEC: 'x0'}, 'sample', False),
    ((), {SPEC: ''}, None, False),
    ((), {SPEC: 'None'}, None, False),
    ((), {'ss_v_parameterization': 'True'}, V, False),
    ((), {'ss_v_parameterization': 'False'}, None, False),
    ((), {'ss_v_parameterization': 'None'}, None, False),
    (
      (),
      {'ss_v_parameterization': 'True', 'ss_zero_terminal_snr': 'True'},
      V,
      True,
    ),
  ],
)
def test_marks(names, metadata, prediction, zero_snr):
  markers = read(names, metadata)
  assert markers.scheduler.get('prediction_type') == prediction
  assert markers.scheduler.get('rescale_betas_zero_snr', False) == zero_snr
  spacing = 'trailing' if zero_snr else None
  assert markers.scheduler.get('timestep_spacing') == spacing
  assert markers.notes == ()


def test_marks_that_disagree():
  """The first decides, and a line says so."""
  markers = read(['v_pred'], {SPEC: 'epsilon'})
  assert markers.scheduler['prediction_type'] == V
  (note,) = markers.notes
  assert 'the tensor v_pred' in note and SPEC in note and '--pred' in note
  markers = read((), {SPEC: 'epsilon', 'ss_v_parameterization': 'True'})
  assert markers.scheduler['prediction_type'] == EPSILON
  assert 'ss_v_parameterization' in markers.notes[0]
  # Epsilon of pure noise says nothing of the image.
  markers = read(['ztsnr'])
  assert markers.scheduler == {}
  assert '--prediction=v --zero_snr' in markers.notes[0]


def test_unknown_words():
  with pytest.raises(ValueError, match="a.safetensors is 'rectified'.*velocit"):
    read((), {SPEC: 'rectified'})
  assert read((), {SPEC: 'rectified'}, decided=True) == ({}, ())


def test_files(tmp_path):
  """A word decides how a whole file is read, and the user before it."""
  source = golden_sets.SETS[0] / 'tiny' / 'refiner'
  conversions.run(source, tmp_path / 'a.safetensors', 'single_file')
  file = safetensors_file.load(tmp_path / 'a.safetensors')
  path = tmp_path / 'b.safetensors'
  metadata = {SPEC: 'Velocity'}
  own = {'sdxl_jax': file.metadata['sdxl_jax'].replace('epsilon', 'sample')}
  safetensors_file.write(path, dict(file.tensors), metadata=own | metadata)
  assert formats.open_model(path).scheduler['prediction_type'] == V
  options = read_options.ReadOptions(prediction='eps')
  model = formats.open_model(path, options=options)
  assert model.scheduler['prediction_type'] == EPSILON


def test_decisions_are_written(tmp_path):
  """Also as other programs read them."""
  source = golden_sets.SETS[0] / 'tiny' / 'refiner'
  path = tmp_path / 'a.safetensors'
  options = read_options.ReadOptions(prediction='v', zero_snr=True)
  lines = conversions.run(source, path, 'single_file', options=options)
  assert 'predicts v_prediction, down to zero SNR' in lines
  file = safetensors_file.load(path)
  assert {'v_pred', 'ztsnr'} <= set(file.tensors)
  assert file.metadata[SPEC] == 'v'
  conversions.run(path, tmp_path / 'folder', 'diffusers')
  scheduler = formats.open_model(tmp_path / 'folder').scheduler
  assert scheduler['prediction_type'] == V
  assert scheduler['rescale_betas_zero_snr']
