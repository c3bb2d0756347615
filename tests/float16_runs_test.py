"""Runs that compute in float16, on the CPU, which has it too."""

import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax import train
from sdxl_jax.checkpoints import orbax_checkpoint
from tests.support import random_bases, tiny_config

pytestmark = pytest.mark.slow

STEPS = 20
NETS = ('unet', 'text_encoder', 'text_encoder_2')
LORA = dict(layers=r'unet/mid.*/attn[12]/to_(v|out_0)', rank=2, alpha=2.0)
# Half of the distance between two numbers of float16, relative to them.
ROUNDING = 2.0**-11


def rounded(x):
  """Returns weights as float16 has them, so that all types start alike."""
  x = x + 0.02 if x.ndim else x  # zeros would hide what is before them
  is_float = jnp.issubdtype(x.dtype, jnp.floating)
  return x.astype(jnp.float16).astype(x.dtype) if is_float else x


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A workdir with a base that was never trained."""
  folder = tmp_path_factory.mktemp('base')
  return random_bases.save(folder, tiny_config.get_config(), rounded)


def get_config(base, dtype, **changes):
  """LoRA on two buckets a step, over four devices that share parameters."""
  config = tiny_config.get_config().unlock()
  config.update(
    init_from=str(base),
    trained=('lora',),
    lora={'attention': LORA},
    total_steps=STEPS,
    global_batch_size=8,
    buckets_per_step=2,
  )
  config.mesh.update(data=1, fsdp=-1)
  config.checkpoint.update(every=5, max_to_keep=STEPS)
  config.loss.min_snr_gamma = 5.0
  config.optimizer.loss_scale_steps = 4
  for net in NETS:
    config[net].update(dtype=dtype, param_dtype=dtype)
  config.update_from_flattened_dict(changes)
  return config.lock()


def run(config, workdir):
  """Trains; returns (what was said, {step: metrics})."""
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    assert train.train(config, workdir) == config.total_steps
  return said.getvalue(), lines_of(workdir)


def lines_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return {line['step']: line for line in map(json.loads, lines)}


def state_of(workdir):
  """Returns all that the last checkpoint has of the State."""
  folder = orbax_checkpoint.find(workdir)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    orbax_checkpoint.read_shapes(folder),
  )
  return orbax_checkpoint.restore(folder, shapes)[0]


def learned(workdir):
  """Returns all numbers of the factors b, which begin as zeros."""
  leaves = jax.tree_util.tree_leaves_with_path(state_of(workdir)['params'])
  return np.concatenate([np.ravel(x) for p, x in leaves if p[-1].key == 'b'])


@pytest.fixture(scope='module')
def overflowing(base, tmp_path_factory):
  """A run whose first scale is far too large; with what it said."""
  workdir = tmp_path_factory.mktemp('overflowing')
  config = get_config(base, 'float16', **{'optimizer.loss_scale': 2.0**32})
  return workdir, config, *run(config, workdir)


def test_overflows_are_left_out_and_the_run_goes_on(overflowing):
  workdir, _, said, lines = overflowing
  left_out = [x for x in said.splitlines() if ' left out: its grad' in x]
  assert left_out[0].startswith('step 0 left out: its gradients overflow at')
  assert 5 < len(left_out) < STEPS - 5
  # The check of movement waits for updates, and no step is a fault. The rate
  # of the first of six is 0.
  assert 'after 6 updates parameters and EMA have moved: lora' in said
  assert 'skipped, ' not in said
  last = lines[STEPS]
  assert last['skipped'] == len(left_out)
  assert 2.0**10 < last['loss_scale'] < 2.0**28
  assert all(np.isfinite(line['loss']) for line in lines.values())
  saved = state_of(workdir)
  assert saved['step'] == STEPS
  assert saved['loss_scale'].keys() == {'scale', 'finite'}


def test_a_stop_changes_nothing(overflowing, tmp_path):
  """While the scale still falls; it is kept and doubles later: bit for bit."""
  workdir, config, _, expected = overflowing
  stopped = tmp_path / 'run'
  shutil.copytree(workdir, stopped)
  for folder in (stopped / 'checkpoints').iterdir():
    if int(folder.name) > 10:
      shutil.rmtree(folder)
  said, lines = run(config, stopped)
  assert lines.keys() == expected.keys()
  for number, line in lines.items():
    for name in 'loss', 'loss_scale', 'skipped', 'grad_norm':
      assert line[name] == expected[number][name], (number, name)
  a, b = state_of(workdir), state_of(stopped)
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_it_trains_as_float32_does(base, tmp_path):
  """A scaled run and one of float32 learn almost the same factors.

  Adam divides gradients by their magnitude, so that the sign of the smallest
  counts as much as that of others: factors differ by more than gradients.
  """
  ends, losses = {}, {}
  for dtype in 'float32', 'float16':
    _, lines = run(get_config(base, dtype), tmp_path / dtype)
    ends[dtype] = learned(tmp_path / dtype)
    losses[dtype] = [line['loss'] for line in lines.values()]
    assert ('loss_scale' in lines[STEPS]) == (dtype == 'float16')
  np.testing.assert_allclose(  # 2.1e-4 was measured
    losses['float16'], losses['float32'], rtol=2 * ROUNDING
  )
  error = np.linalg.norm(ends['float16'] - ends['float32'])
  size = np.linalg.norm(ends['float32'])
  assert 0 < error < 0.02 * size  # 5.3e-3 was measured
