"""Low-rank factors trained beside nets whose kernels are stored in 8 bits."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax import train
from sdxl_jax.checkpoints import loading, orbax_checkpoint, quantized_nets
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.models import from_config, lora, stored_kernels
from sdxl_jax.sampling import pipelines
from sdxl_jax.training import (
  compilation,
  config_validation,
  run_setup,
  tasks,
)
from sdxl_jax.weights.lora import lora_file, published_parts
from tests.support import conversions, random_bases, tiny_config

# Every kind of factors, of linear layers and convolutions, in three nets.
GROUPS = {
  'lora': dict(layers=r'unet/.*/attn1/to_[qk]', rank=2),
  'locon': dict(layers=r'unet/.*/(conv1|conv_shortcut)', rank=2),
  'dora': dict(layers=r'unet/.*/attn1/(to_v|to_out_0)', rank=2, dora_wd=True),
  'loha': dict(layers=r'unet/.*/attn2/to_[qkv]', rank=2, algo='loha'),
  'lokr': dict(layers=r'unet/.*/(net_2|conv2)', rank=1, algo='lokr'),
  'full': dict(layers=r'unet/.*/proj_in', rank=1, algo='full'),
  'text': dict(layers=r'text_encoder(_2)?/.*/(q_proj|fc1)', rank=2),
}
BUCKET = (16, 24)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A workdir with a base model: random, and never trained."""
  folder = tmp_path_factory.mktemp('base')
  config = tiny_config.get_config().unlock()
  config.unet.update(transformer_depth=(0, 2), scan_blocks=True)
  return random_bases.save(folder, config.lock())


def get_config(base, stored):
  """Returns a config for factors of all kinds, beside kernels of a type."""
  config = tiny_config.get_config()
  config.unlock()
  groups = {name: group | {'alpha': 2.0} for name, group in GROUPS.items()}
  config.update(init_from=str(base), trained=('lora',), lora=groups)
  config.data.buckets = (BUCKET,)
  # As at full size, a stack of blocks is a loop.
  config.unet.update(scan_blocks=True, remat='full')
  config.unet.update(transformer_depth=(0, 2))
  for name in lora.NETS:
    config[name].weights_dtype = stored
  config.optimizer.learning_rate = 0.1
  return config.lock()


def with_known_kernels(params):
  """Returns the same nets with kernels in float32 in place of stored ones."""
  known = {}
  for path, x in traverse_util.flatten_dict(params).items():
    scale = None
    if path[-1] == 'kernel':
      flat = traverse_util.flatten_dict(params)
      scale = flat.get((*path[:-1], stored_kernels.SCALE))
    if path[-1] != stored_kernels.SCALE:
      known[path] = x if scale is None else stored_kernels.dequantize(x, scale)
  return traverse_util.unflatten_dict(known)


def random_batch(spec):
  """Returns a batch of these shapes."""
  rng = np.random.default_rng(0)

  def fill(x):
    if x.dtype == np.int32:
      return rng.integers(1, 30, x.shape, dtype=np.int32)
    return rng.uniform(-1, 1, x.shape).astype(x.dtype)

  return jax.tree.map(fill, spec)


@dataclasses.dataclass(frozen=True)
class Step:
  """A task whose nets have stored kernels, and all that its gradients need."""

  task: tasks.train_state.Task
  plain: tasks.train_state.Task  # the same with kernels in float32
  params: dict
  frozen: dict
  batch: dict

  def arguments(self, frozen):
    return self.params, frozen, self.batch, jax.random.key(1), np.int32(0)


@pytest.fixture(scope='module', params=list(stored_kernels.LARGEST))
def step(request, base):
  config = get_config(base, request.param)
  model = from_config.make_model(config)
  task = tasks.make_task(config, model)
  plain = tasks.make_task(config, quantized_nets.unquantized(model))
  frozen = run_setup.load_weights(config, model, None)
  state = jax.jit(task.init)(jax.random.key(0), frozen)
  # Factors of zero would hide errors of the others.
  params = jax.tree.map(lambda x: x + 0.02, state.params)
  batch = random_batch(task.batch_spec(BUCKET))
  return Step(task, plain, params, frozen, batch)


@pytest.fixture(scope='module')
def expected(step):
  """(gradients, metrics) beside the kernels that the stored ones stand for."""
  known = with_known_kernels(step.frozen)
  return jax.jit(step.plain.gradients)(*step.arguments(known))


def check_gradients(found, expected):
  (grads, metrics), (theirs, their_metrics) = found, expected
  np.testing.assert_allclose(metrics['loss'], their_metrics['loss'], rtol=1e-5)
  flat, known = (
    traverse_util.flatten_dict(tree, sep='/') for tree in (grads, theirs)
  )
  assert flat.keys() == known.keys()
  largest = max(np.abs(x).max() for x in known.values())
  for name, x in known.items():
    limit = 1e-4 * np.abs(x).max() + 1e-6 * largest
    np.testing.assert_allclose(flat[name], x, atol=limit, err_msg=name)
  # Of text encoders the last blocks are not read.
  still = [name for name, x in known.items() if not np.any(x)]
  assert all('text_encoder' in name for name in still)


@pytest.mark.slow
def test_gradients_are_those_beside_float32(step, expected):
  stored = traverse_util.flatten_dict(step.frozen, sep='/')
  is_scale = [name.endswith(stored_kernels.SCALE) for name in stored]
  assert sum(is_scale) > 50
  found = jax.jit(step.task.gradients)(*step.arguments(step.frozen))
  check_gradients(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize('step', ['int8'], indirect=True)
@pytest.mark.parametrize('axes', [(2, 2, 1), (1, 2, 2)])
def test_four_devices(step, expected, axes):
  """One type stands for both, which are sharded alike."""
  four = device_mesh.make_mesh(*axes, devices=jax.devices()[:4])
  params, frozen = (
    sharding.with_shardings(tree, four) for tree in (step.params, step.frozen)
  )
  compiled = compilation.compile_gradients(
    step.task, four, params, frozen, BUCKET
  )

  def place(tree):
    return jax.device_put(tree, sharding.tree_shardings(tree, four))

  found = compiled(
    place(step.params),
    place(step.frozen),
    sharding.put_batch(step.batch, four, step.task.batch_spec(BUCKET)),
    *step.arguments(None)[3:],
  )
  check_gradients(jax.tree.map(np.asarray, found), expected)


def test_each_device_loads_its_part(base):
  """A net is quantised before it is placed, a part of it on each device."""
  config = get_config(base, 'int8')
  model = from_config.make_model(config)
  four = device_mesh.make_mesh(1, 4, 1, devices=jax.devices()[:4])
  loaded = run_setup.load_weights(config, model, four)
  alone = run_setup.load_weights(config, model, None)
  jax.tree.map(np.testing.assert_array_equal, loaded, alone)
  kernels = [x for x in jax.tree.leaves(loaded['unet']) if x.dtype == np.int8]
  assert kernels
  for x in kernels:
    assert x.addressable_shards[0].data.size == x.size // 4


@pytest.fixture(scope='module')
def workdir(base, tmp_path_factory):
  """The workdir of a finished run in int8, with samples."""
  folder = tmp_path_factory.mktemp('int8')
  config = get_config(base, 'int8').unlock()
  config.samples.update(every=4, size=BUCKET, steps=2, prompts=('a fox',))
  assert train.train(config.lock(), folder) == 4
  return folder


def parts(folder, config):
  """{(net, tensor, part): array} of what a run trained."""
  folder = orbax_checkpoint.find(folder)
  made = loading.load_trained_lora(folder, config, average='none')
  return {
    (*key, part): array
    for key, delta in made.changes().items()
    for part, array in published_parts.parts_of(delta).items()
  }


@pytest.mark.slow
def test_resuming_equals_no_stop(base, workdir, tmp_path):
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '4')
  config = get_config(base, 'int8')
  assert train.train(config, tmp_path / 'run') == 4
  expected = parts(workdir, config)
  jax.tree.map(
    np.testing.assert_array_equal, parts(tmp_path / 'run', config), expected
  )
  before = parts(tmp_path / 'run' / 'checkpoints' / '2', config)
  assert any(not np.array_equal(before[k], x) for k, x in expected.items())
  # Other kernels are no small change.
  other = get_config(base, None)
  with pytest.raises(ValueError, match='unet.weights_dtype: int8 > None'):
    train.train(other, workdir)


@pytest.mark.slow
def test_what_a_run_in_int8_leaves(base, workdir, tmp_path, close):
  """Factors alone, and a file that other programs read, for the whole base."""
  saved = orbax_checkpoint.find(workdir) / 'state' / '_METADATA'
  arrays = json.loads(saved.read_text())['tree_metadata']
  assert all("'lora'" in name for name in arrays if "'params'" in name)
  assert (workdir / 'samples' / '0000004.png').is_file()
  path = tmp_path / 'mine.safetensors'
  conversions.run_lora(workdir, path, average='none')
  loaded = pipelines.load(workdir, average='none')
  assert not quantized_nets.names(loaded.model)
  from_file = pipelines.load(base, loras=[str(path)]).params
  jax.tree.map(lambda a, b: close(a, b, 1e-6), from_file, loaded.params)
  config = get_config(base, 'int8')
  written = lora_file.load(path, loaded.params)
  assert len(written.changes()) == len(
    {key[:2] for key in parts(workdir, config)}
  )


@pytest.mark.parametrize('name', lora.NETS)
def test_a_net_that_is_trained(base, name):
  config = get_config(base, None).unlock()
  config.update(trained=(name,), lora={})
  config[name].weights_dtype = 'int8'
  with pytest.raises(ValueError, match=rf'{name}.weights_dtype is .int8.*fro'):
    config_validation.check(config.lock())
  config = get_config(base, 'int4')
  with pytest.raises(ValueError, match='weights_dtype is .int4.*float8.*None'):
    config_validation.check(config)
