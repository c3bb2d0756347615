"""States of all optimizers: sharded, saved, resumed bit for bit, and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.checkpoints import orbax_checkpoint, run_params
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.ema import partial_trees, transform
from sdxl_jax.training import (
  gradient_traces,
  optimizer,
  resuming,
  tasks,
  train_state,
)
from tests.support import tiny_config

FROZEN = 'text_encoder/embed/embedding'
RULES = (('text_encoder/.*', 0.0), ('unet/.*/bias', 0.5))
CASES = [(name, 'float32') for name in optimizer.NAMES] + [
  ('adamw', 'int8'),
  ('lion', 'int8'),
  ('schedule_free_adamw', 'bfloat16'),
  ('prodigy', 'int8'),
]


@pytest.fixture(scope='module')
def mesh():
  return device_mesh.make_mesh(1, 2, 2, devices=jax.devices()[:4])


def make_params():
  """Of shapes that Adafactor factors, and of one in blocks of 8 bits."""
  rng = np.random.default_rng(0)

  def weights(*shape):
    return jnp.asarray(rng.normal(0, 0.02, shape), jnp.float32)

  return {
    'unet': {
      'attn1': {'to_q': {'kernel': weights(128, 256), 'bias': weights(256)}},
      'conv': {'kernel': weights(3, 3, 4, 8)},
    },
    'text_encoder': {'embed': {'embedding': weights(96, 128)}},
  }


def make_gradients(params, step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0, 1, x.shape), jnp.float32), params
  )


def make(name, dtype, rules=RULES):
  config = tiny_config.get_config()
  config.optimizer.update(
    name=name, moments_dtype=dtype, warmup_steps=0, rates=rules
  )
  config.total_steps = 20
  return tasks.make_optimizer(config)


def make_state(chain, mesh):
  """A State whose arrays lie as a run's, and its shapes."""
  params = make_params()
  state = train_state.State(jnp.int32(0), params, chain.init(params))
  shapes = sharding.with_shardings(state, mesh)
  places = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.device_put(jax.tree.map(jnp.copy, state), places), shapes


def equal(a, b):
  same = jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), a, b)
  return jax.tree.all(same)


@pytest.mark.parametrize('name, dtype', CASES)
def test_a_run_is_resumed_bit_for_bit(name, dtype, mesh, tmp_path):
  """What is restored goes on as what was saved; the frozen net has no state."""
  chain = make(name, dtype)
  state, shapes = make_state(chain, mesh)
  update = jax.jit(
    train_state.make_update(chain, 1),
    out_shardings=(
      jax.tree.map(lambda x: x.sharding, shapes),
      sharding.replicated(mesh),
    ),
  )

  def step(state, number):
    gradients = make_gradients({'unet': state.params['unet']}, number)
    return update(state, gradients)[0]

  state = step(step(state, 0), 1)
  checkpoints = orbax_checkpoint.Checkpoints(tmp_path)
  checkpoints.save(2, state, {}, {})
  checkpoints.wait()
  resuming.check_optimizer(checkpoints, shapes)
  restored, _ = checkpoints.restore(shapes)
  assert equal(restored, state)
  after = step(state, 2)
  assert equal(step(restored, 2), after)

  # Averages are of what is trained, and evaluated with what is not.
  averages = transform.ema_params(after.opt_state)
  assert set(averages) == {'unet'}
  assert equal(after.params['text_encoder'], make_params()['text_encoder'])
  whole = transform.averaged(after.params, after.opt_state)
  found = run_params.restore(
    tmp_path / 'checkpoints' / '2', mesh, ['unet', 'text_encoder']
  )
  assert jax.tree.structure(found) == jax.tree.structure(whole)
  assert equal(found, transform.averaged(state.params, state.opt_state))
  paths = partial_trees.flat(state.opt_state)
  assert not [path for path in paths if 'text_encoder' in path]
  checkpoints.close()


@pytest.mark.parametrize('name, dtype', CASES)
def test_large_arrays_of_a_state_are_sharded(name, dtype, mesh):
  """By the table where they have the shape of a parameter, else by fsdp."""
  state = jax.eval_shape(make(name, dtype, ()).init, make_params())
  flat = partial_trees.flat(sharding.with_shardings(state, mesh))
  whole = [path for path, x in flat.items() if x.shape == (128, 256)]
  assert whole
  for path in whole:
    assert tuple(flat[path].sharding.spec) == ('fsdp', 'tensor'), path
  for path, x in flat.items():
    if x.size >= 64:
      assert not x.sharding.is_fully_replicated, path


@pytest.mark.parametrize('name, dtype', CASES)
def test_traces_of_gradients(name, dtype):
  """Rows of a table that no caption has are known from all others."""
  chain, params = make(name, dtype, ()), make_params()
  gradients = jax.tree.map(jnp.ones_like, params)
  table = jnp.zeros((96, 128)).at[5:7].set(1.0)
  gradients['text_encoder']['embed']['embedding'] = table
  gradients['unet']['conv']['kernel'] *= 0
  _, state = jax.jit(chain.update)(gradients, chain.init(params), params)
  flat = partial_trees.flat(params)
  traces = gradient_traces.of(state, flat)
  assert set(traces) == set(flat)
  for path, gradient in partial_trees.flat(gradients).items():
    driven = np.ones(flat[path].shape, bool)
    for trace in traces[path]:
      driven &= np.asarray(trace) != 0
    np.testing.assert_array_equal(driven, np.asarray(gradient) != 0, path)


def test_the_state_of_another_optimizer_is_refused(tmp_path, mesh):
  state, _ = make_state(make('adamw', 'float32', ()), mesh)
  checkpoints = orbax_checkpoint.Checkpoints(tmp_path)
  checkpoints.save(4, state, {}, {})
  checkpoints.wait()
  for other in (
    make('lion', 'float32', ()),
    make('adamw', 'int8', ()),
    make('adamw', 'float32'),
  ):
    _, shapes = make_state(other, mesh)
    with pytest.raises(ValueError, match='step 4 has the state of another op'):
      resuming.check_optimizer(checkpoints, shapes)
  # Types of the same tree are restored to each other; factors have no state.
  for same in (
    make('adamw', 'bfloat16', ()),
    make('adamw', 'float32', (('unet/.*', 0.5),)),
  ):
    resuming.check_optimizer(checkpoints, make_state(same, mesh)[1])
  checkpoints.close()


def test_memory_of_the_moments():
  """Bytes of each parameter, without the EMA: what the guide's table has."""
  params = {'kernel': jax.ShapeDtypeStruct((1280, 1280), jnp.float32)}

  def size(name, dtype):
    settings = optimizer.Settings(moments_dtype=dtype)
    chain = optimizer.make(name, lambda _: 1.0, settings)
    state = jax.eval_shape(chain.init, params)
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    return round(total / 1280**2, 2)

  assert {name: size(name, 'float32') for name in optimizer.NAMES} == {
    'adamw': 8.0,
    'adafactor': 0.01,
    'came': 4.01,
    'dadapt_adam': 12.0,
    'lion': 4.0,
    'muon': 4.0,
    'prodigy': 16.0,
    'schedule_free_adamw': 8.0,
  }
  assert size('adamw', 'bfloat16') == 4.0
  assert size('adamw', 'int8') == 2.05
  assert size('lion', 'int8') == pytest.approx(1.03, abs=0.01)


def test_a_schedule_is_that_of_the_steps():
  """Also where `skipping` leaves out an update: its count goes on."""
  for name in optimizer.NAMES:
    state = make(name, 'float32', ()).init(make_params())
    nodes = jax.tree.leaves(
      state, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
    )
    assert any(isinstance(x, optax.ScaleByScheduleState) for x in nodes), name


@pytest.mark.parametrize('name', optimizer.ESTIMATING)
def test_updates_compile_array_by_array(name):
  """What looks at all gradients is not computed again for each array."""

  def length(count):
    chain = optimizer.make(name, lambda _: 1.0, optimizer.Settings())
    params = {f'{i}': jnp.ones(8) for i in range(count)}
    state = jax.eval_shape(chain.init, params)
    compiled = jax.jit(chain.update).lower(params, state, params).compile()
    return len(compiled.as_text())

  assert length(40) < 2.5 * length(20)
