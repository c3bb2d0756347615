"""Samples of a run that are not finite: a line, and the run goes on."""

import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.evaluation import reconstruction
from sdxl_jax.models import autoencoder_gan
from sdxl_jax.sampling import finiteness
from sdxl_jax.training import loop, metrics_writer, sample_grid, train_state
from tests.support import autoencoder_config


def test_samples_that_are_not_finite_are_left_out(tmp_path, monkeypatch):
  said = []
  run = object.__new__(loop.Run)
  grid = object.__new__(sample_grid.SampleGrid)
  for name, value in (('sample_grid', grid), ('workdir', tmp_path)):
    object.__setattr__(run, name, value)
  writer = object.__new__(metrics_writer.Writer)
  monkeypatch.setattr(
    metrics_writer.Writer, 'say', lambda self, line: said.append(line)
  )
  monkeypatch.setattr(
    metrics_writer.Writer, 'image', lambda *args: said.append('shown')
  )
  monkeypatch.setattr(loop.transform, 'ema_params', lambda opt_state: {})
  state = train_state.State(jnp.int32(7), {}, ())

  def fail(self, params):
    raise finiteness.NonFiniteError('image 1 of 2 has NaN')

  monkeypatch.setattr(sample_grid.SampleGrid, 'render', fail)
  loop.write_samples(run, state, 7, writer)
  assert said == ['warning: no samples of step 7: image 1 of 2 has NaN']
  assert not list(tmp_path.rglob('*.png'))

  # Finite ones are written.
  monkeypatch.setattr(
    sample_grid.SampleGrid,
    'render',
    lambda self, params: np.zeros((8, 8, 3), np.uint8),
  )
  loop.write_samples(run, state, 8, writer)
  assert said[1:] == ['shown']
  assert (tmp_path / 'samples' / '0000008.png').is_file()


def test_reconstructions_that_are_not_finite_are_no_grid(monkeypatch):
  config = autoencoder_config.get_config()
  images = np.zeros((2, 16, 16, 3), np.float32)
  model = object.__new__(autoencoder_gan.AutoencoderGAN)
  grid = sample_grid.SampleGrid(config, model, {}, images)
  for value, bad in ((0.5, False), (np.nan, True)):
    made = jnp.asarray(images).at[1, 3].set(value)
    monkeypatch.setattr(
      reconstruction, 'reconstruct', lambda *args, made=made: (made, None)
    )
    if not bad:
      assert grid.render({}).dtype == np.uint8
      continue
    with pytest.raises(finiteness.NonFiniteError, match='1 of 2 reconstruct'):
      grid.render({})
