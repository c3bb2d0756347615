"""The UNets against the reference: outputs, activations, gradients."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.models import layers, unet, unet_embedding
from sdxl_jax.weights.diffusers import tensor_names
from tests.support import folders

MODELS = ['base', 'refiner']
# What the reference's own bfloat16 deviates: tolerances['bf16_note'].
BF16_RMS = 0.09


def load(golden, model, **fields):
  folder = golden / 'tiny' / model
  config, params = folders.load_component(folder, 'unet', **fields)
  return unet.UNet(config), params


@pytest.fixture(scope='module', params=MODELS)
def net(golden, jit, request):
  """Name, module, parameters and one compiled function for all tests."""
  net, params = load(golden, request.param)
  apply = jit(lambda params, *x: net.apply({'params': params}, *x))
  return request.param, net, params, apply


def load_inputs(net, arrays):
  """The reference's inputs in our layout."""
  sample = arrays['sample'].transpose(0, 2, 3, 1)
  sizes = layers.sinusoid(arrays['time_ids'], net.config.size_embed_dim)
  vector = [arrays['text_embeds'], sizes.reshape(len(sample), -1)]
  timestep = np.broadcast_to(arrays['timestep'], len(sample))
  context = arrays['encoder_hidden_states']
  return sample, timestep, context, np.concatenate(vector, axis=-1)


def nchw(x):
  return np.asarray(x).transpose(0, 3, 1, 2)


def same_batch(apply, params, inputs, rows=3):
  """Batches of the same size, so that one program serves more cases."""
  repeated = [np.resize(x, (rows, *x.shape[1:])) for x in inputs]
  return nchw(apply(params, *repeated)[: len(inputs[0])])


def load_cases(golden, model):
  paths = (golden / 'tiny' / 'fixtures').glob(f'unet_{model}_b*.npz')
  return {path.stem: np.load(path) for path in sorted(paths)}


def test_outputs(golden, close, tolerances, net):
  model, net, params, apply = net
  cases = load_cases(golden, model)
  assert any(name.endswith('_odd') for name in cases)
  for name, arrays in cases.items():
    out = same_batch(apply, params, load_inputs(net, arrays))
    for key in ('out', 'out_f64'):
      close(out, arrays[key], tolerances['unet_out'], f'{name} {key}')


def test_small_inputs_meet_the_right_epsilon(
  close, tolerances, load_probe, net
):
  model, net, params, apply = net
  arrays, params = load_probe(f'probe_unet_{model}', params)
  out = same_batch(apply, params, load_inputs(net, arrays))
  close(out, arrays['out_f64'], tolerances['eps_probes'])


def activation(captured, name):
  """What the module of the published name gave, in the published layout."""
  for module in re.sub(r'\.(\d+)', r'_\1', name).split('.'):
    captured = captured[module]
  (out,) = captured['__call__']
  # Levels return the skips as well.
  out = np.asarray(out[0] if isinstance(out, tuple) else out)
  return nchw(out) if out.ndim == 4 else out


def test_blocks_one_by_one_or_as_a_scan(golden, close, tolerances, jit, net):
  model, scanned, stacked, apply_scanned = net
  net, params = load(golden, model, scan_blocks=False)
  apply = jit(
    lambda params, *x: net.apply(
      {'params': params}, *x, capture_intermediates=True
    )
  )
  (arrays,) = (a for a in load_cases(golden, model).values() if len(a) > 7)
  inputs = load_inputs(net, arrays)
  out, state = apply(params, *inputs)
  for key in arrays:
    if key.startswith('act/'):
      ours = activation(state['intermediates'], key.removeprefix('act/'))
      close(ours, arrays[key], tolerances['unet_out'], key)
  expected = same_batch(apply_scanned, stacked, inputs)
  close(nchw(out), expected, tolerances['unet_out'])
  assert scanned.config.scan_blocks


@pytest.mark.slow
@pytest.mark.parametrize('model', MODELS)
def test_gradients(golden, close, tolerances, jit, check_grads, model):
  net, params = load(golden, model)
  fixtures = golden / 'tiny' / 'fixtures'
  arrays = np.load(fixtures / f'unet_{model}_grad.npz')
  stats = json.loads((fixtures / f'unet_{model}_grad_stats.json').read_text())
  sample, timestep, context, vector = load_inputs(net, arrays)
  target = arrays['target'].transpose(0, 2, 3, 1)

  def loss(params, sample, context, vector):
    out = net.apply({'params': params}, sample, timestep, context, vector)
    return jnp.mean((out - target) ** 2)

  value, (grads, *inputs) = jit(jax.value_and_grad(loss, range(4)))(
    params, sample, context, vector
  )
  np.testing.assert_allclose(value, stats['loss'], rtol=1e-5)
  check_grads(grads, stats['params'], arrays)
  sample, context, vector = inputs
  text = vector[:, : arrays['text_embeds'].shape[1]]
  limit = tolerances['unet_grad_inputs_and_named_weights']
  close(nchw(sample), arrays['grad_input/sample'], limit, 'sample')
  close(context, arrays['grad_input/encoder_hidden_states'], limit, 'context')
  close(text, arrays['grad_input/text_embeds'], limit, 'text_embeds')


def restack(params, target):
  """The same weights in another net's tree, stacked or not."""
  return tensor_names.from_published(tensor_names.tensors(params), target)


def test_scan_and_remat_change_nothing(close, jit):
  generator = np.random.default_rng(0)

  def draw(shape):
    return generator.normal(size=shape).astype(np.float32)

  inputs = draw((2, 6, 4, 8)), draw((2, 32)), draw((2, 7, 12))

  def make(**fields):
    config = unet.UNetConfig(
      num_heads=(2,), mid_transformer_depth=2, norm_num_groups=4, **fields
    )
    net = unet.MidBlock(config)
    tree = jax.eval_shape(net.init, jax.random.key(0), *inputs)['params']

    def loss(params):
      return jnp.mean(net.apply({'params': params}, *inputs) ** 2)

    return jit(jax.value_and_grad(loss)), tree

  grad, stacked = make()
  # Fresh weights end in zeros, which leave hardly a gradient.
  params = jax.tree.map(lambda leaf: 0.3 * draw(leaf.shape), stacked)
  value, grads = grad(params)
  expected = traverse_util.flatten_dict(grads, sep='/')
  for remat, scan, unroll in (
    ('full', True, 1),
    ('dots', True, 1),
    ('dots', True, 2),
    ('dots', False, 1),
  ):
    grad, tree = make(remat=remat, scan_blocks=scan, scan_unroll=unroll)
    other, grads = grad(restack(params, tree))
    np.testing.assert_allclose(other, value, rtol=1e-5)
    grads = traverse_util.flatten_dict(restack(grads, stacked), sep='/')
    for name, ours in grads.items():
      setting = f'{remat}, {scan}, {unroll}'
      close(ours, expected[name], 1e-4, f'{setting}: {name}')


def test_guidance_scale(close, jit):
  """As embedded by diffusers: sines first, by width / 2 - 1."""
  scales = np.float32([1, 1.5, 8, 14])
  angles = 1000 * (scales[:, None] - 1) * 10000.0 ** (-np.arange(8) / 7)
  expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
  embedded = jit(unet_embedding.guidance_sinusoid, static_argnums=1)(scales, 16)
  close(embedded, expected, 1e-3)  # float32 of up to 13000 radians


@pytest.mark.parametrize('scan', [True, False])
def test_a_context_is_projected_once_for_many_calls(close, scan):
  config = unet.UNetConfig(
    num_heads=(2,),
    mid_transformer_depth=2,
    norm_num_groups=4,
    scan_blocks=scan,
  )
  generator = np.random.default_rng(0)

  def draw(*shape):
    return generator.normal(size=shape).astype(np.float32)

  first, x, temb, context = (
    draw(2, 6, 4, 8),
    draw(2, 6, 4, 8),
    draw(2, 32),
    draw(2, 7, 12),
  )
  net = unet.MidBlock(config)
  tree = jax.eval_shape(net.init, jax.random.key(0), x, temb, context)
  params = jax.tree.map(lambda leaf: 0.3 * draw(*leaf.shape), tree['params'])
  variables = {'params': params}
  _, cached = net.apply(variables, first, temb, context, mutable=['context'])
  paths = traverse_util.flatten_dict(cached['context'])
  assert {path[-2:] for path in paths} == {('attn2', 'k'), ('attn2', 'v')}
  once = net.apply(variables | cached, x, temb, None)
  close(once, net.apply(variables, x, temb, context), 1e-6)
  other = jax.tree.map(lambda leaf: 2 * leaf, cached)
  assert np.abs(net.apply(variables | other, x, temb, None) - once).max() > 0.01


def test_bfloat16(golden, jit):
  net, params = load(golden, 'base', dtype='bfloat16')
  name, arrays = next(iter(load_cases(golden, 'base').items()))
  out = jit(net.apply)({'params': params}, *load_inputs(net, arrays))
  assert out.dtype == jnp.float32
  error = np.sqrt(np.mean((nchw(out) - arrays['out_f64']) ** 2))
  # Not so good that it could have been float32.
  assert 1e-3 < error < BF16_RMS, name


@pytest.mark.parametrize(
  ('config', 'size'),
  [
    (unet.BASE, (128, 128)),
    (unet.REFINER, (128, 128)),
    (unet.REFINER, (83, 129)),  # odd on the way down
  ],
)
def test_full_size(config, size):
  latents, context = (2, *size, 4), (2, 77, config.context_dim)
  shapes = latents, (2,), context, (2, config.vector_dim)
  inputs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  init = unet.UNet(config).init_with_output
  out, _ = jax.eval_shape(init, jax.random.key(0), *inputs)
  assert out.shape == latents
