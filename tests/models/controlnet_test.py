"""ControlNets against live diffusers: residuals and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import controlnet, layers, unet
from sdxl_jax.weights import net_shapes
from sdxl_jax.weights.diffusers import config_json, tensor_names
from tests.support import control_nets, folders

CASES = {
  'plain': ({}, 1),
  'bgr': ({'channel_order': 'bgr'}, 1),
  'union of one': ({'union': True}, 1),
  'union of two': ({'union': True, 'fusion_layers': 2}, 2),
}


def draw(*shape):
  rng = np.random.default_rng(sum(shape))
  return np.float32(rng.normal(size=shape))


def make_inputs(config, images, size=(6, 10)):
  """Latents of odd halves, texts, sizes and control images of two rows."""
  h, w = size
  return {
    'latents': draw(2, h, w, config.in_channels),
    'timestep': np.float32([3, 801]),
    'context': draw(2, 7, config.context_dim),
    'pooled': draw(2, config.vector_dim - 6 * config.size_embed_dim),
    'sizes': np.float32([[48, 80, 0, 8, 48, 80], [100, 50, 1, 2, 48, 80]]),
    # One for all rows, as one image is sampled.
    'images': [
      np.float32(np.random.default_rng(i).random((1, 8 * h, 8 * w, 3)))
      for i in range(images)
    ],
  }


def vector_of(config, inputs):
  sizes = layers.sinusoid(inputs['sizes'], config.size_embed_dim)
  return jnp.concatenate([inputs['pooled'], sizes.reshape(2, -1)], -1)


def nchw(x):
  return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


def call_theirs(net, config, inputs, scales, types, guess):
  """The residuals of diffusers, on tensors that may need gradients."""
  torch = pytest.importorskip('torch')
  tensors = {
    n: torch.from_numpy(nchw(x) if n == 'latents' else x).requires_grad_()
    for n, x in inputs.items()
    if n in ('latents', 'context', 'pooled')
  }
  images = [
    torch.from_numpy(nchw(x).repeat(2, 0)).requires_grad_()
    for x in inputs['images']
  ]
  more = {'controlnet_cond': images[0], 'conditioning_scale': scales[0]}
  if config.control_types:
    given = torch.zeros(2, config.control_types)
    given[:, types] = 1
    more = {
      'controlnet_cond': images,
      'control_type': given,
      'control_type_idx': types,
      'conditioning_scale': list(scales),
    }
  down, mid = net(
    tensors['latents'],
    torch.from_numpy(inputs['timestep']),
    tensors['context'],
    added_cond_kwargs={
      'text_embeds': tensors['pooled'],
      'time_ids': torch.from_numpy(inputs['sizes']),
    },
    guess_mode=guess,
    return_dict=False,
    **more,
  )
  return [*down, mid], tensors, images


def call_ours(config, params, inputs, scales, types, guess):
  images = [x.repeat(2, 0) for x in inputs['images']]
  return controlnet.ControlNet(config).apply(
    {'params': params},
    inputs['latents'],
    inputs['timestep'],
    inputs['context'],
    vector_of(config, inputs),
    *images,
    scales=jnp.float32(scales),
    types=jnp.int32(types) if config.control_types else None,
    guess=guess,
    method=controlnet.apply_to_images,
  )


@functools.cache
def make_case(name):
  """(config, params, diffusers' net, inputs, scales, types)."""
  fields, images = CASES[name]
  config = control_nets.make_config(**fields)
  params = control_nets.random_params(config)
  theirs = control_nets.in_diffusers(config, params)
  scales, types = (0.7, 1.3)[:images], [3, 1][:images]
  return config, params, theirs, make_inputs(config, images), scales, types


QUICK = ('plain', True), ('union of two', False)


@pytest.mark.torch
@pytest.mark.parametrize(
  'name, guess',
  [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in itertools.product(CASES, (False, True))
  ],
)
def test_live_residuals(name, guess, jit, close, tolerances):
  pytest.importorskip('diffusers')
  config, params, theirs, *rest = make_case(name)
  expected, *_ = call_theirs(theirs, config, *rest, guess)
  found = jit(
    lambda params, *x: call_ours(config, params, *x, rest[-1], guess)
  )(params, *rest[:-1])
  assert len(found) == len(expected)
  for i, (ours, other) in enumerate(zip(found, expected)):
    limit = tolerances['unet_out']
    close(nchw(ours), other.detach().numpy(), limit, f'residual {i}')


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize('name', ['plain', 'union of two'])
def test_live_gradients(name, jit, close, tolerances):
  """Of a loss behind the UNet, by the ControlNet's parameters and inputs."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  config, params, theirs, inputs, scales, types = make_case(name)
  for parameter in theirs.parameters():
    parameter.grad = None
  folder = control_nets.TINY / 'base'
  unet_config, unet_params = folders.load_component(folder, 'unet')
  target = draw(*inputs['latents'].shape)

  residuals, tensors, images = call_theirs(
    theirs, config, inputs, scales, types, False
  )
  out = diffusers.UNet2DConditionModel.from_pretrained(folder / 'unet')(
    tensors['latents'],
    torch.from_numpy(inputs['timestep']),
    tensors['context'],
    added_cond_kwargs={
      'text_embeds': tensors['pooled'],
      'time_ids': torch.from_numpy(inputs['sizes']),
    },
    down_block_additional_residuals=residuals[:-1],
    mid_block_additional_residual=residuals[-1],
  ).sample
  expected = ((out - torch.from_numpy(nchw(target))) ** 2).mean()
  expected.backward()

  def loss(params, floats, images):
    both = inputs | floats | {'images': images}
    residuals = call_ours(config, params, both, scales, types, False)
    out = unet.UNet(unet_config).apply(
      {'params': unet_params},
      both['latents'],
      both['timestep'],
      both['context'],
      vector_of(config, both),
      residuals=residuals,
    )
    return jnp.mean((out - target) ** 2)

  floats = {n: inputs[n] for n in tensors}
  value, grads = jit(jax.value_and_grad(loss, (0, 1, 2)))(
    params, floats, inputs['images']
  )
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  by_params, by_inputs, by_images = grads
  limit = tolerances['unet_grad_inputs_and_named_weights']
  for name, tensor in tensors.items():
    theirs_of = tensor.grad.numpy()
    ours = by_inputs[name]
    ours = nchw(ours) if name == 'latents' else ours
    close(ours, theirs_of, limit, name)
  for i, image in enumerate(images):
    summed = image.grad.numpy().sum(0, keepdims=True)
    close(nchw(by_images[i]), summed, limit, f'image {i}')
  check_params(tensor_names.tensors(by_params), theirs, close, limit)


def check_params(ours, theirs, close, limit):
  """Compares the gradients of all parameters."""
  named = dict(theirs.named_parameters())
  assert ours.keys() == named.keys()
  largest = max(float(p.grad.abs().max()) for p in named.values())
  for name, parameter in named.items():
    expected, found = parameter.grad.numpy(), ours[name].read()
    if np.abs(expected).max() > 1e-6 * largest:
      close(found, expected, limit, name)
    else:  # zero but for rounding, as of keys' biases
      assert np.abs(found).max() <= 2e-6 * largest, name


@pytest.mark.slow
def test_a_fresh_net_changes_nothing(jit):
  """Its residuals are zero, whatever the image is."""
  config = control_nets.make_config(union=True)
  net = controlnet.ControlNet(config)
  inputs = controlnet.init_inputs(config)

  def run(key):
    make = functools.partial(net.init, method=controlnet.apply_to_images)
    variables = make(key, *inputs)
    *rest, image = inputs
    out = net.apply(
      variables, *rest, image + 1, method=controlnet.apply_to_images
    )
    return variables['params'], out

  params, out = jit(run)(jax.random.key(0))
  assert len(out) == 10 and not any(map(np.any, out))
  # Its blocks do not begin at zero, from which nothing would be learned.
  assert np.any(params['controlnet_cond_embedding']['conv_in']['kernel'])
  assert np.any(params['task_embedding'])


def test_stored_keys_and_values(jit, close):
  """As of the UNet: those of a context are computed once."""
  config = control_nets.make_config()
  params = control_nets.random_params(config)
  inputs = make_inputs(config, 1)
  net, vector = controlnet.ControlNet(config), vector_of(config, inputs)
  image = inputs['images'][0].repeat(2, 0)

  @jit
  def run(params, context):
    latents, timestep = inputs['latents'], inputs['timestep']
    apply = functools.partial(net.apply, method=controlnet.apply_to_images)
    plain, variables = apply(
      {'params': params},
      latents,
      timestep,
      context,
      vector,
      image,
      mutable=['context'],
    )
    again = apply(
      {'params': params, **variables}, latents, timestep, None, vector, image
    )
    return plain, again

  plain, again = run(params, inputs['context'])
  other, _ = run(params, 2 * inputs['context'])
  for ours, expected in zip(again, plain):
    close(ours, expected, 1e-5)
  assert np.abs(other[-1] - plain[-1]).max() > 0


@pytest.mark.torch
@pytest.mark.parametrize(
  'fields',
  [{}, {'control_types': 8, 'conditioning_features': (48, 96, 192, 384)}],
)
def test_full_size_names_and_shapes(fields):
  """One to one with diffusers' modules, without memory for numbers."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  config = controlnet.ControlNetConfig(**fields)
  published = config_json.write('controlnet', config)
  with torch.device('meta'):
    net = getattr(diffusers, published['_class_name']).from_config(published)
  shapes = net_shapes.abstract_params(config)
  places = tensor_names.locations(tensor_names.flat(shapes))
  ours = {name: place.shape for name, place in places.items()}
  theirs = {name: tuple(x.shape) for name, x in net.state_dict().items()}
  assert ours == theirs
  assert config_json.read('controlnet', dict(net.config), 'x') == config
