"""What the first updates must move: frozen nets, tiny rates, warm-ups."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.ema import transform
from sdxl_jax.training import (
  movement,
  movement_report,
  optimizer,
  tasks,
  train_state,
)
from tests.support import autoencoder_config, tiny_config

NETS = ('lora', 'text', 'unet')
EMA = transform.ema(0.9999)


@pytest.fixture(scope='module')
def mesh():
  return device_mesh.make_mesh(1, 4, devices=jax.devices()[:4])


def make_params(dtype='float32'):
  """Two nets with weights of usual size, and one of low-rank factors."""
  rng = np.random.default_rng(0)

  def weights(*shape):
    return jnp.asarray(rng.normal(0, 0.02, shape), dtype)

  return {
    'unet': {'conv': {'kernel': weights(3, 3, 32, 64), 'bias': weights(64)}},
    'text': {'embed': {'embedding': weights(100, 8)}},
    'lora': {'layer': {'a': weights(40, 4), 'b': jnp.zeros((4, 24), dtype)}},
  }


def gradients_of(params):
  """Of a loss that uses some rows of a table, and the product of a and b."""

  def loss(params):
    a, b = params['lora']['layer']['a'], params['lora']['layer']['b']
    rows = params['text']['embed']['embedding'][jnp.array([1, 2, 3, -1])]
    conv = params['unet']['conv']
    return (
      (a @ b + 1).astype('float32').sum()
      + rows.astype('float32').sum()
      + (conv['kernel'].astype('float32') * 3).sum()
      + (conv['bias'].astype('float32') * 2).sum()
    )

  return jax.grad(loss)(params)


@functools.partial(
  jax.jit, static_argnames=('average', 'clip_norm'), donate_argnums=0
)
def take_step(state, rates, driven, average, clip_norm):
  """Takes a step; `driven` is {net: 1, or 0 without a gradient}."""
  gradients = {
    net: optax.tree.scale(driven[net], tree)
    for net, tree in gradients_of(state.params).items()
  }
  chain = make_chain(lambda count: rates[count], average, clip_norm)
  return train_state.make_update(chain, 1)(state, gradients)[0]


def make_chain(schedule, average, clip_norm=1.0):
  settings = optimizer.Settings(weight_decay=0.0, clip_norm=clip_norm)
  adamw = optimizer.make('adamw', schedule, settings)
  return optax.chain(adamw, average)


def run(
  mesh,
  rates,
  *,
  start=0,
  nets=NETS,
  driven=NETS,
  average=EMA,
  dtype='float32',
  clip_norm=1.0,
  left_out=(),
):
  """Takes steps with these rates; returns the lines said, with their step."""
  params = make_params(dtype)
  params = jax.device_put(params, sharding.tree_shardings(params, mesh))
  opt_state = make_chain(len, average).init(params)
  counts = optax.tree.set(opt_state, count=jnp.int32(start))
  opt_state = jax.tree.map(jnp.copy, counts)  # no buffer is donated twice
  state = train_state.State(jnp.int32(0), params, opt_state)

  rates, said = np.asarray(rates, np.float32), []
  checks = movement.make_checks(mesh, nets, {}, rates, start)
  follower = movement.Movement(
    checks, rates, lambda line: said.append((done, line))
  )
  done = start
  follower.follow(done, state)
  # One compiled program for all lengths and nets.
  padded = jnp.zeros(1000).at[: len(rates)].set(rates)
  gates = {net: jnp.asarray(net in driven, dtype) for net in NETS}
  while done < len(rates) and follower.is_open:
    if done not in left_out:
      state = take_step(state, padded, gates, average, clip_norm)
    done += 1
    follower.follow(done, state)
  return said


GOOD = 'parameters and EMA have moved: lora, text, unet'


def test_all_that_is_trained_moves(mesh):
  ((done, line),) = run(mesh, [1e-3] * 8)
  assert (done, line) == (5, f'after 5 updates {GOOD}')


def test_updates_that_are_left_out_are_waited_for(mesh):
  """A loss scale that is too large leaves out the first steps of a run."""
  ((done, line),) = run(mesh, [1e-3] * 12, left_out=(0, 1, 2, 3, 4, 6))
  assert (done, line) == (11, f'after 5 updates {GOOD}')
  # A run without enough of them ends without a word.
  assert run(mesh, [1e-3] * 12, left_out=range(1, 9)) == []


def test_a_warmup_is_waited_for(mesh):
  """Its first rates are too small to see; the rate of step 0 is 0."""
  rates = np.minimum(np.arange(60) / 1000, 1) * 1e-5
  ((done, line),) = run(mesh, rates)
  assert done == 12 and GOOD in line  # 0 + 1 + ... + 11 >= 59


def test_zeros_in_front_of_factors(mesh):
  """The gradient of `a` is 0 while `b` is: a run of one update says so."""
  ((_, line),) = run(mesh, [1e-3])
  assert 'lora (but 1 of 2 arrays have no gradient: lora/layer/a)' in line
  ((_, line),) = run(mesh, [1e-3] * 2)
  assert 'no gradient' not in line


def test_a_net_without_gradient(mesh):
  ((done, line),) = run(mesh, [1e-3] * 8, driven=('lora', 'text'))
  assert done == 5
  expected = 'warning: after 5 updates the gradient of unet is still 0'
  assert line.startswith(expected)


def test_nothing_moves(mesh):
  """The run stops, since it would be in vain."""
  with pytest.raises(ValueError, match='nothing is trained.*lora.*text.*unet'):
    run(mesh, [1e-3] * 8, driven=())


def test_a_rate_of_0(mesh):
  """Whoever sets it wants nothing to move, and is told."""
  ((done, line),) = run(mesh, [0.0] * 8)
  assert done == 5
  assert 'no parameter of lora, text, unet has moved' in line
  assert 'rate was at most 0, too small' in line


def test_a_rate_that_float32_cannot_hold(mesh):
  """A few numbers near 0 move, most do not."""
  ((_, line),) = run(mesh, [1e-12] * 8, nets=('unet',))
  assert line.startswith('warning: after 5 updates only 0.')
  assert 'rate was at most 1e-12, too small for their type' in line


def test_a_rate_that_bfloat16_cannot_hold(mesh):
  settings = dict(nets=('unet',), dtype='bfloat16')
  ((_, line),) = run(mesh, [1e-5] * 8, **settings)
  assert 'of the parameters of unet have moved: the learning rate' in line
  ((_, line),) = run(mesh, [1e-3] * 8, **settings)
  assert 'have moved: unet' in line and 'warning' not in line


def test_a_clip_norm_that_leaves_nothing(mesh):
  with pytest.raises(ValueError, match='nothing is trained.*clip_norm'):
    run(mesh, [1e-6] * 8, nets=('unet',), clip_norm=1e-14)
  ((_, line),) = run(mesh, [1e-6] * 8, nets=('unet',))
  assert 'have moved: unet' in line


def test_an_average_that_stands_still(mesh):
  still = transform.averages(lambda n: jnp.ones_like(n))
  said = run(mesh, [1e-3] * 8, average=still, nets=('unet',))
  ((_, line),) = said
  assert 'the EMA of unet has moved in 0.0% of its numbers only' in line


def test_no_average(mesh):
  """A decay of 0 keeps the parameters, which move."""
  ((_, line),) = run(mesh, [1e-3] * 8, average=transform.ema(0.0))
  assert GOOD in line


def test_a_resumed_run(mesh):
  ((done, line),) = run(mesh, [1e-3] * 40, start=20)
  assert (done, line) == (25, f'after 5 updates {GOOD}')


def test_the_tail_of_a_decay_is_not_checked(mesh):
  """Its rates are too small on purpose."""
  rates = 1e-3 * (1 + np.cos(np.arange(1000) / 1000 * np.pi)) / 2
  assert run(mesh, rates, start=992) == []


@pytest.mark.parametrize(
  'rates, start, end',
  [
    ([1e-3] * 100, 0, 5),
    ([1e-3] * 3, 0, 3),  # shorter than the check, but whole
    ([1e-3] * 100, 98, None),
    ([0.0] * 100, 0, 5),
    ([0.0, *[1e-3] * 99], 0, 6),  # the first step has no rate
    (np.arange(101) / 100 * 1e-4, 0, 15),
    (np.arange(10_000) / 1e4 * 1e-4, 0, 142),
    (np.arange(100, 0, -1) / 100, 0, 5),
    (np.arange(100, 0, -1) / 100, 80, 86),
    (np.arange(100, 0, -1) / 100, 90, None),
    ([], 0, None),
  ],
)
def test_when_all_must_have_moved(rates, start, end):
  rates = np.asarray(rates, np.float32)
  assert movement.last_update(rates, start) == end


def test_nets_that_take_part_later(mesh):
  """A discriminator is followed from its start on."""
  config = autoencoder_config.get_config().unlock()
  config.total_steps, config.optimizer.warmup_steps = 100, 0
  config.autoencoder.adversary_start = 50
  config.optimizer.cosine = False
  rates = np.ones(100)
  nets = ('discriminator', 'vae')
  checks = movement.make_checks(mesh, nets, {'discriminator': 50}, rates, 7)
  found = {check.nets: (check.start, check.end) for check in checks}
  assert found == {('discriminator',): (50, 55), ('vae',): (7, 12)}
  rates = tasks.LearningRates(config, 7).values
  made = tasks.make_movement(config, mesh, nets, rates, 7, print)
  assert {(c.start, c.end) for c in made._checks} == {(7, 12), (50, 55)}


@pytest.mark.parametrize('name', ['prodigy', 'dadapt_adam'])
def test_an_estimated_rate_has_time_to_grow(name, mesh):
  """The warning names the rate that the estimate makes of the config's."""
  config = tiny_config.get_config().unlock()
  config.total_steps, config.optimizer.warmup_steps = 200, 0
  config.optimizer.update(name=name, learning_rate=0.5, d0=1e-12)
  rates = tasks.LearningRates(config, 0).values
  made = tasks.make_movement(config, mesh, ['unet'], rates, 0, print)
  assert [(c.start, c.end) for c in made._checks] == [(0, 100)]

  said, params = [], {'unet': {'kernel': jnp.ones((4, 4))}}
  config.total_steps = 4
  rates = tasks.LearningRates(config, 0).values
  made = tasks.make_movement(config, mesh, ['unet'], rates, 0, said.append)
  chain = tasks.make_optimizer(config)
  update = train_state.make_update(chain, 1)
  state = train_state.State(jnp.int32(0), params, chain.init(params))
  with pytest.raises(ValueError, match=r'at most \S+e-1[23], too .* d0 of an'):
    for done in range(5):
      made.follow(done, state)
      state, _ = update(state, jax.tree.map(jnp.ones_like, params))
  assert not said


def test_a_finished_run_is_not_followed(mesh):
  config = tiny_config.get_config()
  total = config.total_steps
  rates = tasks.LearningRates(config, total).values
  made = tasks.make_movement(config, mesh, ['unet'], rates, total, print)
  assert not made.is_open


def test_what_is_frozen_on_purpose_is_not_named(mesh):
  """Without moments there is nothing to move."""
  config = autoencoder_config.get_config().unlock()
  config.autoencoder.update(decoder_only=True, learn_logvar=False)
  params = {
    'vae': {
      'encoder': {'kernel': jnp.ones((4, 4))},
      'decoder': {'kernel': jnp.ones((4, 4))},
    },
    'discriminator': {'kernel': jnp.ones((4, 4))},
    'logvar': jnp.zeros([]),
  }
  chain = tasks.make_optimizer(config)
  state = train_state.State(jnp.int32(0), params, chain.init(params))
  nets = ['discriminator', 'logvar', 'vae']
  check = movement.Check(mesh, nets, 0, 2)
  assert check.follow(0, state) == []
  update = train_state.make_update(chain, 1)
  for _ in range(2):
    state, _ = update(state, jax.tree.map(jnp.ones_like, params))
  found = check.follow(2, state)
  assert [(net.name, net.arrays) for net in found] == [
    ('discriminator', 1),
    ('vae', 1),
  ]
  assert [net.moved for net in found] == [1.0, 1.0]
  assert (
    'have moved: discriminator, vae'
    in movement_report.report(found, 2, 1e-3)[0]
  )


def test_elements_are_few_and_hold_the_last():
  table = jnp.arange(49408 * 8).reshape(49408, 8)
  taken = movement.take({'params': {'x': table, 'scalar': jnp.zeros([])}})
  taken = taken['params']
  assert taken['x'].shape == (16, 8) and taken['scalar'].shape == ()
  assert taken['x'][-1, -1] == table[-1, -1]


def test_elements_of_shards_cost_no_memory(mesh):
  """No array is put together for them: each device takes its own first."""
  shapes = {
    f'unet/{i}/kernel': jax.ShapeDtypeStruct(shape, jnp.float32)
    for i, shape in enumerate([(1280, 10240), (3, 3, 1279, 1280), (2050, 1001)])
  }
  shapes = sharding.with_shardings({'params': shapes}, mesh)
  place = sharding.replicated(mesh)
  take = jax.jit(movement.take, out_shardings=place).lower(shapes).compile()
  assert take.memory_analysis().temp_size_in_bytes < 100_000
  assert take.memory_analysis().output_size_in_bytes < 100_000


def test_large_arrays_count_more():
  """Shares are of all parameters, although of each array few are looked at."""
  before = {name: {'n/big': np.zeros(4), 'n/small': np.zeros(4)}
            for name in ('params', 'ema')}  # fmt: skip
  after = {
    'params': {'n/big': np.ones(4), 'n/small': np.zeros(4)},
    'ema': {'n/big': np.array([1, 1, 0, 0]), 'n/small': np.zeros(4)},
    'traces': {'n/big': (np.ones(4),), 'n/small': (np.ones(4),)},
  }
  net = movement.compare('n', before, after, {'n/big': 300, 'n/small': 100})
  assert (net.moved, net.ema_moved) == (0.75, 0.375)


def test_a_gradient_that_is_not_a_number_is_a_gradient():
  """What it spoils has moved; its loss is reported elsewhere."""
  before = {'params': {'unet/a': np.zeros(3)}, 'ema': {'unet/a': np.zeros(3)}}
  nan = {'unet/a': np.full(3, np.nan)}
  traces = {'unet/a': (nan['unet/a'],)}
  after = {'params': nan, 'ema': nan, 'traces': traces}
  net = movement.compare('unet', before, after, {'unet/a': 3})
  assert (net.still, net.moved, net.ema_moved) == ((), 1, 1)
