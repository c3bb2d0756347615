"""One step of the task: micro-batches, devices, frozen nets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config
from sdxl_jax.training import compilation, diffusion_task, tasks
from tests.support import tiny_config

KEY = jax.random.key(1)


def random_batch(spec):
  rng = np.random.default_rng(0)

  def make(s):
    return (
      rng.uniform(-1, 1, s.shape).astype(s.dtype)
      if s.dtype == jnp.float32
      else rng.integers(0, 40, s.shape, dtype=np.int32)
    )

  return jax.tree.map(make, spec)


LORA = {
  'linear': dict(layers='.*/(to_[qkv]|to_out_0|net_2)', rank=2, alpha=1.0),
  'text': dict(layers='text_encoder.*/(q_proj|fc2)', rank=2, alpha=2.0),
  'conv': dict(layers='unet/.*(conv[12]|conv_in)', rank=3, alpha=9.0),
}


@pytest.fixture(scope='module', params=['whole', 'lora'])
def setup(request):
  config = tiny_config.get_config()
  if request.param == 'lora':
    with config.unlocked():
      config.update(trained=('lora',), lora=LORA)
  nets = from_config.make_model(config)
  task = tasks.make_task(config, nets)
  state = jax.jit(task.init)(jax.random.key(0))
  # Zero-initialised outputs would hide errors upstream.
  state = state.replace(params=jax.tree.map(lambda x: x + 0.02, state.params))
  frozen = jax.jit(nets.init)(jax.random.key(0))
  frozen = {n: frozen[n] for n in nets.configs if n not in config.trained}
  frozen = jax.tree.map(lambda x: x + 0.02, frozen)
  batch = random_batch(task.batch_spec((16, 24)))
  return config, nets, task, state, frozen, batch


@pytest.mark.slow
@pytest.mark.parametrize('axes', [(2, 2, 1), (1, 2, 2)])
def test_meshes_do_not_change_gradients(setup, close, axes):
  _, _, task, state, frozen, batch = setup
  gradients = jax.jit(task.gradients)
  expected, metrics = gradients(state.params, frozen, batch, KEY, 0)
  assert expected.keys() == state.params.keys()
  four = device_mesh.make_mesh(*axes, devices=jax.devices()[:4])
  shapes = sharding.with_shardings(state.params, four)
  still = sharding.with_shardings(frozen, four)
  compiled = compilation.compile_gradients(task, four, shapes, still, (16, 24))

  def place(tree):
    return jax.device_put(tree, sharding.tree_shardings(tree, four))

  grads, metrics_4 = compiled(
    place(state.params),
    place(frozen),
    sharding.put_batch(batch, four, task.batch_spec((16, 24))),
    KEY,
    np.int32(0),
  )
  close(metrics_4['loss'], metrics['loss'], 1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  flat = traverse_util.flatten_dict(expected, sep='/')
  zero = {name for name, x in flat.items() if not np.any(np.asarray(x))}
  # The first text encoder's hidden state is taken before its last norm.
  norm = 'text_encoder/text_model/final_layer_norm'
  unread = {f'{norm}/scale', f'{norm}/bias'} if 'unet' in expected else set()
  assert zero == unread


@pytest.mark.slow
def test_update_takes_the_mean_of_micro_batches(setup):
  config, nets, task, state, *_ = setup
  halves = diffusion_task.make_diffusion_task(
    diffusion_task.DiffusionLoss(nets),
    tasks.make_optimizer(config),
    global_batch_size=4,
    trained=tuple(config.trained),
    micro_batches=2,
  )
  assert halves.batch_spec((16, 24))['image'].shape[0] == 2
  twice = jax.tree.map(lambda x: 2 * x, state.params)
  a, metrics_a = task.update(state, state.params)
  b, metrics_b = halves.update(state, twice)
  assert jax.tree.all(jax.tree.map(np.array_equal, a, b))
  assert float(metrics_a['grad_norm']) == float(metrics_b['grad_norm'])


def test_indivisible_batch(setup):
  config, nets, *_ = setup
  loss = diffusion_task.DiffusionLoss(nets)
  with pytest.raises(ValueError, match='4 is not a multiple of.*3'):
    diffusion_task.make_diffusion_task(
      loss, None, global_batch_size=4, micro_batches=3
    )


def test_frozen_nets_stay_out_of_the_state(setup):
  config, nets, *_ = setup
  task = diffusion_task.make_diffusion_task(
    diffusion_task.DiffusionLoss(nets),
    tasks.make_optimizer(config),
    global_batch_size=4,
    trained=('unet',),
  )
  state = jax.eval_shape(task.init, jax.random.key(0))
  assert set(state.params) == {'unet'}


def test_refused_mesh():
  with pytest.raises(ValueError, match='data=3, fsdp=1, tensor=1 does not fit'):
    device_mesh.make_mesh(data=3, devices=jax.devices()[:1])
