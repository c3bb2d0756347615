"""Checks the claims of the configs, and that each can be trained."""

import jax
import numpy as np
import pytest

from configs import (
  lcm_lora,
  lora,
  refiner,
  stage0,
  stage1,
  stage2,
  stage3,
  textual_inversion,
  tiny,
)
from sdxl_jax import plan
from sdxl_jax.data.sources import synthetic
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import compute_dtype, from_config, net_types
from sdxl_jax.training import compilation, config_validation, tasks

FULL_SIZE = {
  stage1: 2_567_463_684,
  stage2: 2_567_463_684,
  stage3: 2_567_463_684,
  refiner: 2_259_526_660,
}


def test_prompts_of_tiny_are_held_out():
  vocabulary = synthetic.Scenes(**tiny.get_config().data.scenes).vocabulary
  rng = np.random.default_rng(0)
  unseen = {
    synthetic.caption(vocabulary.draw(rng, held_out=True), rng)
    for _ in range(3000)
  }
  assert set(tiny.PROMPTS) <= unseen


@pytest.mark.parametrize('module', FULL_SIZE, ids=lambda m: m.__name__)
def test_full_size(module):
  """Parameters, gradients and batch have the shapes that they must."""
  config = module.get_config()
  config_validation.check(config)
  four = device_mesh.make_mesh(1, 4, devices=jax.devices()[:4])
  tasks.check_mesh(config, four)
  nets = from_config.make_model(config, 'cpu')
  task = tasks.make_task(config, nets)
  params = jax.eval_shape(nets.init, jax.random.key(0))
  params = sharding.with_shardings(params, four)
  unet = {'unet': params['unet']}
  count = sum(x.size for x in jax.tree.leaves(unet))
  assert count == FULL_SIZE[module]
  frozen = {n: params[n] for n in nets.configs if n != 'unet'}
  bucket = plan.choose_buckets(config, 'extremes')[-1]
  traced = compilation.trace_gradients(task, four, unet, frozen, bucket)
  gradients, metrics = traced.out_info

  def same(g, p):
    return g.shape == p.shape and g.dtype == p.dtype

  assert jax.tree.all(jax.tree.map(same, gradients, unet))
  assert metrics['loss'].shape == ()


def test_full_size_of_stage_0():
  config = stage0.get_config()
  config_validation.check(config)
  four = device_mesh.make_mesh(devices=jax.devices()[:4])
  nets = from_config.make_model(config, 'cpu')
  task = tasks.make_task(config, nets)
  state = jax.eval_shape(task.init, jax.random.key(0))
  params = sharding.with_shardings(state.params, four)

  def count(net):
    return sum(x.size for x in jax.tree.leaves(params[net]))

  assert count('vae') == 83_653_863
  assert count('discriminator') == 2_765_633
  frozen = {'lpips': jax.eval_shape(nets.init, jax.random.key(0))['lpips']}
  frozen = sharding.with_shardings(frozen, four)
  traced = compilation.trace_gradients(task, four, params, frozen, (256, 256))
  gradients, metrics = traced.out_info

  def same(g, p):
    return g.shape == p.shape and g.dtype == p.dtype

  assert jax.tree.all(jax.tree.map(same, gradients, params))
  assert metrics['loss'].shape == ()


@pytest.mark.parametrize('kind', ['', 'prior'])
def test_full_size_of_lora(kind):
  config = lora.get_config(kind)
  config_validation.check(config)
  config = net_types.resolve(config, compute_dtype.Kind('tpu'))
  four = device_mesh.make_mesh(1, 4, devices=jax.devices()[:4])
  nets = from_config.make_model(config, 'cpu')
  task = tasks.make_task(config, nets)
  state = jax.eval_shape(task.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(state.params)) == 23_224_320
  dtypes = {x.dtype.name for x in jax.tree.leaves(state.params)}
  assert dtypes == {'float32'}
  if kind:  # the same nets
    return
  params = sharding.with_shardings(state.params, four)
  frozen = jax.eval_shape(nets.init, jax.random.key(0))
  frozen = {n: frozen[n] for n in nets.configs}
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(frozen))
  assert size < 7.2e9
  frozen = sharding.with_shardings(frozen, four)
  traced = compilation.trace_gradients(task, four, params, frozen, (1024, 1024))
  gradients, _ = traced.out_info

  def same(g, p):
    return g.shape == p.shape and g.dtype == p.dtype

  assert jax.tree.all(jax.tree.map(same, gradients, params))


@pytest.mark.slow
def test_full_size_of_a_student_of_few_steps():
  config = lcm_lora.get_config()
  config_validation.check(config)
  config = net_types.resolve(config, compute_dtype.Kind('tpu'))
  nets = from_config.make_model(config, 'cpu')
  task = tasks.make_task(config, nets)
  state = jax.eval_shape(task.init, jax.random.key(0))
  frozen = jax.eval_shape(nets.init, jax.random.key(0))
  frozen = {n: frozen[n] for n in nets.configs}
  gradients, metrics = jax.eval_shape(
    task.gradients,
    state.params,
    frozen,
    task.batch_spec((1024, 1024)),
    jax.random.key(0),
    0,
  )
  assert jax.tree.map(np.shape, gradients) == jax.tree.map(
    np.shape, state.params
  )
  assert metrics['loss'].shape == ()
  assert sum(x.size for x in jax.tree.leaves(state.params)) == 196_751_360


def test_the_chain_of_stages():
  """Each stage keeps the architecture of the stage before it."""
  one, two, three = (m.get_config() for m in (stage1, stage2, stage3))
  assert one.unet == two.unet == three.unet
  assert (one.from_scratch, two.from_scratch) == (('unet',), ())
  assert (one.total_steps, one.global_batch_size) == (600_000, 2048)
  assert two.total_steps == 200_000
  assert three.loss.offset_noise == 0.05
  assert refiner.get_config().loss.timestep_range == (0, 200)


@pytest.mark.parametrize('stage', ['', *tiny.STAGES])
def test_tiny_stages(stage):
  config = tiny.get_config(stage)
  config_validation.check(config)
  task = tasks.make_task(config, from_config.make_model(config))
  state = jax.eval_shape(task.init, jax.random.key(0))
  assert set(state.params) - {'logvar'} == set(config.trained)


@pytest.mark.parametrize(
  'kind, count', [('', 4096), ('style', 4096), ('pivotal', 23_228_416)]
)
def test_full_size_of_textual_inversion(kind, count):
  """Vectors of both text encoders, in float32, and shared out by fsdp."""
  config = textual_inversion.get_config(kind)
  config.init_from = 'SDXL'
  config_validation.check(config)
  config = net_types.resolve(config, compute_dtype.Kind('tpu'))
  task = tasks.make_task(config, from_config.make_model(config, 'cpu'))
  state = jax.eval_shape(task.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(state.params)) == count
  four = device_mesh.make_mesh(1, 4, devices=jax.devices()[:4])
  placed = sharding.with_shardings(state.params['words'], four)
  for net, width in ('text_encoder', 768), ('text_encoder_2', 1280):
    vectors = placed[net]['main']['vectors']
    assert vectors.shape == (2, width) and vectors.dtype == 'float32'
    assert vectors.sharding.spec == jax.sharding.PartitionSpec(None, 'fsdp')
  # Neither moments nor EMA of anything else.
  size = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert size < 3 * count + 10
