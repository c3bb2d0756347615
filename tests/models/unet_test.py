"""The UNets against the reference: outputs, activations, gradients."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import layers, unet
from sdxl_jax.weights import files

MODELS = ['base', 'refiner']


def load(golden, model, **fields):
  folder = golden / 'tiny' / model
  config, params = files.load_component(folder, 'unet', **fields)
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


@pytest.mark.parametrize(
  ('model', 'remat'), [('base', 'none'), ('base', 'full'), ('refiner', 'none')]
)
def test_gradients(golden, close, tolerances, jit, check_grads, model, remat):
  net, params = load(golden, model, remat=remat)
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
