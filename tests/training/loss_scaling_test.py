"""Tests loss scaling on a model of four numbers, and on the tiny UNet."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.checkpoints import orbax_checkpoint
from sdxl_jax.ema import transform
from sdxl_jax.models import from_config
from sdxl_jax.training import (
  loss_scaling,
  optimizer,
  resuming,
  skipping,
  tasks,
  train_state,
)
from tests.support import tiny_config

STEPS = 3  # without overflow, until the scale doubles
SCALE = 2.0**15
# Half of the distance between two numbers of float16, relative to them.
ROUNDING = 2.0**-11
GOOD = [1.0, -1.0, 2.0, 0.5]
LARGE = [1.0, 300.0, 2.0, 0.5]  # its gradients are finite from 2^27 on


def make_task(dtype, scale=SCALE, steps=STEPS):
  """The mean of many squares, of which the rest are 0, as one of latents."""
  schedule = optax.linear_schedule(0.1, 0.0, 10)
  adamw = optimizer.make('adamw', schedule, optimizer.Settings())
  chain = optax.chain(adamw, transform.ema(0.9))

  def init(key, pretrained=None):
    params = {'net': {'kernel': jnp.array([1.0, 2.0, 3.0, 4.0])}}
    return train_state.State(
      jnp.zeros([], jnp.int32), params, chain.init(params)
    )

  def gradients(params, frozen, batch, key, micro_step, scale=None):
    def loss(params):
      y = params['net']['kernel'].astype(dtype) * batch.astype(dtype)
      value = jnp.square(y.astype(jnp.float32)).sum() / 2**30
      return value, {'loss': value}

    return loss_scaling.scaled_gradients(loss, params, scale)

  update = train_state.make_update(chain, micro_batches=1)
  plain = train_state.Task(init, gradients, update, batch_spec=None)
  if dtype == 'float32':
    return plain
  return loss_scaling.scale_loss(skipping.skip_non_finite(plain), scale, steps)


def take_steps(task, state, batches):
  """Returns the State after steps, and the metrics of each."""
  gradients, update, found = jax.jit(task.gradients), jax.jit(task.update), []
  for batch in batches:
    values, metrics = gradients(
      state.params, {}, jnp.array(batch), None, 0, *state.scale
    )
    state, more = update(state, values)
    found.append({k: float(v) for k, v in (metrics | more).items()})
  return state, found


def kernel(state):
  return np.asarray(state.params['net']['kernel'])


def test_gradients_vanish_without_a_scale():
  """Those of float32 are under half of the smallest number of float16."""
  exact, half = make_task('float32'), make_task('float16')
  params = exact.init(None).params
  expected, _ = exact.gradients(params, {}, jnp.array(GOOD), None, 0)
  expected = np.asarray(expected['net']['kernel'])
  assert (np.abs(expected) < 2.0**-25).all() and expected.all()

  def scaled(scale):
    found, _ = half.gradients(
      params, {}, jnp.array(GOOD), None, 0, jnp.float32(scale)
    )
    return np.asarray(found['net']['kernel'])

  assert not scaled(1.0).any()
  # Three numbers are rounded on the way: y, its derivative, and the product.
  np.testing.assert_allclose(scaled(SCALE), expected, rtol=3 * ROUNDING)


def test_steps_are_those_of_float32():
  batches = [GOOD, [0.5, 1.0, 1.0, -1.0], [1.0, 2.0, 0.1, 0.3]] * 2
  expected, _ = take_steps(
    make_task('float32'), make_task('float32').init(None), batches
  )
  task = make_task('float16')
  state, metrics = take_steps(task, task.init(None), batches)
  np.testing.assert_allclose(kernel(state), kernel(expected), rtol=1e-3)
  # After three steps the scale has doubled, after six once more.
  scales = [m['loss_scale'] / SCALE for m in metrics]
  assert scales == [1, 1, 1, 2, 2, 2]
  assert float(state.loss_scale.scale) == 4 * SCALE
  assert metrics[-1]['skipped'] == 0


def test_overflow_halves_and_leaves_the_step_out():
  task = make_task('float16', scale=2.0**32)
  start = task.init(None)
  state, (metrics,) = take_steps(task, start, [LARGE])
  assert not np.isfinite(metrics['grad_norm'])
  assert np.isfinite(metrics['loss'])
  assert metrics['loss_scale'] == 2.0**32 and metrics['skipped'] == 1
  assert float(state.loss_scale.scale) == 2.0**31
  assert int(state.step) == 1 and int(transform.updates(state.opt_state)) == 0
  assert np.array_equal(kernel(state), kernel(start))
  # It falls until the gradients are finite, and the run goes on.
  state, metrics = take_steps(task, state, [LARGE] * 20)
  scales = [m['loss_scale'] for m in metrics]
  finite = [np.isfinite(m['grad_norm']) for m in metrics]
  first = finite.index(True)
  assert 0 < first and scales[: first + 1] == [
    2.0**31 / 2**i for i in range(first + 1)
  ]
  assert int(transform.updates(state.opt_state)) == sum(finite)
  assert metrics[-1]['skipped'] == 21 - sum(finite)
  assert not np.array_equal(kernel(state), kernel(start))
  # Three finite steps double it, the next overflows again, and so on.
  assert scales[first : first + 5] == [
    scales[first] * x for x in (1, 1, 1, 2, 1)
  ]


def test_a_state_that_was_kept_goes_on_alike(tmp_path):
  """With a count of finite steps that is not 0, and a scale that has fallen."""
  task = make_task('float16', scale=2.0**32)
  state, _ = take_steps(task, task.init(None), [LARGE] * 7)
  assert int(state.loss_scale.finite) > 0
  checkpoints = orbax_checkpoint.Checkpoints(tmp_path)
  checkpoints.save(7, state, POSITION, {})
  checkpoints.wait()
  restored = restore(checkpoints, shapes_of(state))
  checkpoints.close()
  whole, metrics = take_steps(task, state, [LARGE] * 5)
  resumed, others = take_steps(task, restored, [LARGE] * 5)
  assert metrics == others
  assert jax.tree.structure(whole) == jax.tree.structure(resumed)
  assert jax.tree.all(jax.tree.map(np.array_equal, whole, resumed))


POSITION = {'batch_size': 4}


class Batches:
  """What `restore` asks of the data."""

  class schedule:
    global_batch_size = 4

  def set_state(self, position, micro_step, new_pass):
    pass


def shapes_of(state):
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state
  )


def restore(checkpoints, shapes):
  return resuming.restore(checkpoints, shapes, Batches(), 1, False, print)


def test_runs_that_change_their_type(tmp_path):
  """A checkpoint without a scale begins with one; one that has it is read."""
  exact, half = make_task('float32'), make_task('float16')
  states = {'exact': exact.init(None), 'half': half.init(None)}
  for saved, state in states.items():
    checkpoints = orbax_checkpoint.Checkpoints(tmp_path / saved)
    checkpoints.save(1, state, POSITION, {})
    checkpoints.wait()
    # What is saved of float32 is what was saved before there was a scale.
    assert ('loss_scale' in checkpoints.read_shapes()) == (saved == 'half')
    for wanted, target in states.items():
      shapes = shapes_of(target)
      found = restore(checkpoints, shapes)
      found = loss_scaling.with_scale(found, shapes, SCALE)
      assert jax.tree.structure(found) == jax.tree.structure(target), wanted
      assert jax.tree.all(jax.tree.map(np.array_equal, found, target))
    checkpoints.close()


@pytest.mark.parametrize(
  'scale, count, finite, expected',
  [
    (8.0, 0, True, (8.0, 1)),
    (8.0, STEPS - 1, True, (16.0, 0)),
    (8.0, STEPS - 1, False, (4.0, 0)),
    (loss_scaling.SMALLEST, 1, False, (loss_scaling.SMALLEST, 0)),
    (loss_scaling.LARGEST, STEPS - 1, True, (loss_scaling.LARGEST, 0)),
  ],
)
def test_the_next_scale(scale, count, finite, expected):
  state = train_state.LossScale(jnp.float32(scale), jnp.int32(count))
  found = loss_scaling.follow(state, jnp.bool_(finite), STEPS)
  assert (float(found.scale), int(found.finite)) == expected


def test_a_device_decides_for_all():
  """One row of many overflows: no device takes the update."""
  devices = np.array(jax.devices())
  mesh = jax.sharding.Mesh(devices, 'data')
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  task = make_task('float16', scale=2.0**30)
  state, (metrics,) = take_steps(
    task, task.init(None), [jax.device_put(jnp.array(LARGE), place)]
  )
  assert np.isfinite(metrics['loss']) and not np.isfinite(metrics['grad_norm'])
  assert np.array_equal(kernel(state), kernel(task.init(None)))


def make_loss(dtype):
  """Returns (params, gradients(params, *scale)) of factors beside a tiny UNet.

  Its weights are numbers of float16 in all types.
  """
  config = tiny_config.get_config().unlock()
  layers = r'unet/.*/attn[12]/(to_[qkv]|to_out_0)'
  config.update(
    trained=('lora',), lora={'all': dict(layers=layers, rank=2, alpha=2.0)}
  )
  for net in ('unet', 'text_encoder', 'text_encoder_2'):
    config[net].dtype = dtype
  nets = from_config.make_model(config)
  params = jax.jit(nets.init)(jax.random.key(0))
  # Layers that begin with zeros would hide what is before them.
  params = jax.tree.map(lambda x: jnp.float32(jnp.float16(x + 0.02)), params)
  task = tasks.make_task(config, nets)
  trained = {'lora': params.pop('lora')}
  batch = random_batch(task.batch_spec((16, 24)))
  gradients, key = jax.jit(task.gradients), jax.random.key(1)
  return lambda *scale: gradients(trained, params, batch, key, 0, *scale)[0]


def random_batch(spec):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: (
      rng.integers(0, 40, s.shape).astype(s.dtype) / 40
      if s.dtype == jnp.float32
      else rng.integers(0, 40, s.shape, s.dtype)
    ),
    spec,
  )


def flat(tree):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.slow
def test_gradients_of_a_unet():
  """An image of 1024 px has 57 times as many latents as these, 16 x 24 px.

  Each gradient is the smaller by that factor, for which a scale of 1 / 64
  stands.
  """
  expected = flat(make_loss('float32')())
  half = make_loss('float16')
  found = {s: flat(half(jnp.float32(s))) for s in (2.0**-6, SCALE)}
  assert expected.all() and found[SCALE].all()
  assert (found[2.0**-6] == 0).mean() > 0.5
  # Errors of many roundings, one after another, add up like random ones: 1.2e-3
  # was measured.
  size = np.linalg.norm(expected)
  assert np.linalg.norm(found[SCALE] - expected) < 4 * ROUNDING * size
  assert np.linalg.norm(found[2.0**-6] - expected) > 8 * ROUNDING * size
