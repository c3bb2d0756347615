"""What is said of weights to start from that are read or trained otherwise."""

import json
import shutil

import pytest

from sdxl_jax.checkpoints import run_sources
from sdxl_jax.training import start_warnings
from sdxl_jax.weights import prediction_words
from tests.support import published_config


@pytest.fixture
def config():
  return published_config.get_config()


def warnings(config):
  return list(start_warnings.of_schedule(config))


def with_scheduler(config, folder, **changes):
  """Lets a config start from a copy whose scheduler has other entries."""
  shutil.copytree(config.init_from, folder)
  path = folder / 'scheduler' / 'scheduler_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  config.init_from = str(folder)


def test_a_schedule_that_the_weights_were_not_trained_on(config):
  assert warnings(config) == []
  config.schedule.update(prediction='v', zero_terminal_snr=True)
  first, second = warnings(config)
  assert "config.schedule.prediction is 'v'" in first and "'eps'" in first
  assert 'config.schedule.zero_terminal_snr is True' in second
  assert config.init_from in first and '\n' not in first + second
  # Nothing is said of a UNet that is new, or of no UNet.
  config.from_scratch = ('unet',)
  assert warnings(config) == []
  config.update(from_scratch=(), init_from='')
  assert warnings(config) == []


def test_a_header_with_an_unknown_word(config, tmp_path):
  with_scheduler(config, tmp_path / 'model', prediction_type='vv')
  (line,) = warnings(config)
  assert "is 'vv', which is no known prediction" in line
  assert '--prediction' not in line  # a flag of other commands
  assert "config.schedule.prediction is 'eps'" in line
  # The config decides, so that it can be trained from.
  assert run_sources.reading(config).prediction == 'eps'


def test_a_schedule_that_is_not_known(config, tmp_path):
  """The true reason is given, and not that of an unknown word."""
  with_scheduler(config, tmp_path / 'model', interpolation_type='log_linear')
  (line,) = warnings(config)
  assert 'cannot be compared with config.schedule: interpolation_type' in line
  assert 'prediction' not in line


def test_weights_that_cannot_be_opened_end_the_run(config, tmp_path):
  with_scheduler(config, tmp_path / 'model', beta_start='small')
  with pytest.raises(ValueError, match="beta_start is 'small'") as info:
    warnings(config)
  assert not isinstance(info.value, prediction_words.UnknownPrediction)


def test_notes_on_how_files_are_read(config, tmp_path):
  """Of the model, and of an autoencoder of its own."""
  assert not list(start_warnings.of_files(config))
  folder = tmp_path / 'model'
  plain = shutil.copytree(f'{config.init_from}/vae', tmp_path / 'plain')
  shutil.copytree(config.init_from, folder)
  for path in folder.rglob('*.safetensors'):
    if path.parent.name != 'unet':
      path.rename(path.with_suffix('.fp16.safetensors'))
  config.update(init_from=str(folder), init_variant='fp16')
  (line,) = start_warnings.of_files(config)
  assert line == (
    f'{folder}: unet: no variant fp16, so that plain files are read'
  )
  config.init_vae = str(plain)
  assert list(start_warnings.of_files(config)) == [line]
