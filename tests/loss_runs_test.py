"""Runs with what config.loss has beside its defaults, up to their samples."""

import json
import shutil

import jax
import numpy as np
import pytest

from sdxl_jax import sample, train
from sdxl_jax.checkpoints import orbax_checkpoint
from tests.data import loss_masks_test
from tests.support import datasets, tiny_config

pytestmark = pytest.mark.slow

STEPS = 4


def get_config(folder, **changes):
  """A masked loss of a flow whose shift grows with the size."""
  config = tiny_config.get_config()
  config.data.update(source='folder', buckets=((16, 24),), index_workers=0)
  config.data.folder.update(path=str(folder), mask='.mask.png')
  config.data.flip_probability = 0.5
  config.optimizer.cosine = False
  config.schedule.update(
    prediction='flow', zero_terminal_snr=False, shift=2.0, shift_size=16
  )
  config.loss.update(
    loss_type='huber',
    masked_loss=True,
    soft_min_snr_gamma=4.0,
    multires_noise_iterations=3,
    ip_noise_gamma=0.1,
    timestep_sampling='logit_normal',
    logit_mean=0.5,
  )
  config.update(total_steps=STEPS, **changes)
  return config


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The images, and the workdir of a run of four steps."""
  folder = tmp_path_factory.mktemp('finished')
  datasets.write_folder(folder / 'images', loss_masks_test.examples())
  config = get_config(folder / 'images')
  assert train.train(config, folder / 'run') == STEPS
  return folder


def params_of(workdir):
  folder = orbax_checkpoint.find(workdir)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    orbax_checkpoint.read_shapes(folder),
  )
  state, _ = orbax_checkpoint.restore(folder, shapes)
  return jax.tree.leaves(state)


def lines_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_run_resumes_bit_for_bit(finished, tmp_path):
  workdir = shutil.copytree(finished / 'run', tmp_path / 'run')
  config = get_config(finished / 'images')
  assert train.train(config, workdir, from_step=2) == STEPS
  for one, other in zip(params_of(workdir), params_of(finished / 'run')):
    np.testing.assert_array_equal(one, other)
  losses = [line['loss'] for line in lines_of(finished / 'run')]
  assert len(losses) == STEPS and np.isfinite(losses).all()
  assert [line['loss'] for line in lines_of(workdir)][2:] == losses[2:]
  assert all('unmasked' in line for line in lines_of(workdir))


def test_a_flow_is_sampled(finished):
  """From the workdir, at the shift of the size."""
  pipeline = sample.load(str(finished / 'run'))
  assert pipeline.scheduler['shift_size'] == 16
  for sampler in 'euler', 'dpmpp_2m':
    _, latents = sample.generate(
      pipeline, ['a fish'], seeds=[3], steps=3, size=(16, 24), sampler=sampler
    )
    assert np.isfinite(latents).all() and latents.std() > 0.01
