"""Runs with what config.loss has beside its defaults, up to their samples."""

import json
import shutil

import jax
import numpy as np
import pytest

from sdxl_jax import sample, train
from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.diffusion import timestep_importance
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
    timestep_sampling='importance',
    timestep_range=(400, 410),
  )
  # The history is sharded as parameters are.
  config.mesh.update(data=1, fsdp=-1)
  config.update(total_steps=STEPS, **changes)
  return config


@pytest.fixture(scope='module', autouse=True)
def few_examples():
  """A history that decides after a step already."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(timestep_importance, 'LEAST', 0.1)
    yield


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The images, and the workdir of a run of four steps."""
  folder = tmp_path_factory.mktemp('finished')
  datasets.write_folder(folder / 'images', loss_masks_test.examples())
  config = get_config(folder / 'images')
  assert train.train(config, folder / 'run') == STEPS
  return folder


def state_of(workdir):
  folder = orbax_checkpoint.find(workdir)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    orbax_checkpoint.read_shapes(folder),
  )
  state, _ = orbax_checkpoint.restore(folder, shapes)
  return state


def lines_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_run_resumes_bit_for_bit(finished, tmp_path):
  workdir = shutil.copytree(finished / 'run', tmp_path / 'run')
  config = get_config(finished / 'images')
  assert train.train(config, workdir, from_step=2) == STEPS
  states = state_of(workdir), state_of(finished / 'run')
  for one, other in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(one, other)
  # The history is of all examples, and of their timesteps alone.
  squares, examples = states[0]['loss_history']
  assert squares.shape == (10,) and examples.sum() == STEPS * 4
  assert (squares[examples > 0] > 0).all()
  losses = [line['loss'] for line in lines_of(finished / 'run')]
  assert len(losses) == STEPS and np.isfinite(losses).all()
  assert [line['loss'] for line in lines_of(workdir)][2:] == losses[2:]
  assert all('unmasked' in line for line in lines_of(workdir))


def test_without_its_history(finished, tmp_path):
  """A run that does not need it leaves it; one that does begins anew."""
  workdir = shutil.copytree(finished / 'run', tmp_path / 'run')
  for total, sampling in (STEPS + 1, 'uniform'), (STEPS + 2, 'importance'):
    config = get_config(finished / 'images')
    config.loss.timestep_sampling = sampling
    config.total_steps = total
    assert train.train(config, workdir) == total
    has_history = 'loss_history' in state_of(workdir)
    assert has_history == (sampling == 'importance')
  assert state_of(workdir)['loss_history'][1].sum() == 4


def test_a_flow_is_sampled(finished):
  """From the workdir, at the shift of the size."""
  pipeline = sample.load(str(finished / 'run'))
  assert pipeline.scheduler['shift_size'] == 16
  for sampler in 'euler', 'dpmpp_2m':
    _, latents = sample.generate(
      pipeline, ['a fish'], seeds=[3], steps=3, size=(16, 24), sampler=sampler
    )
    assert np.isfinite(latents).all() and latents.std() > 0.01
