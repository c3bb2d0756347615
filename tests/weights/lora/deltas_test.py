"""Changes of a weight, compared with PEFT and LyCORIS."""

import numpy as np
import pytest

from sdxl_jax.weights.lora import layer_parts, lora_names

LINEAR, CONV = (24, 20), (12, 8, 3, 3)


def random(shape, seed, scale=0.3):
  rng = np.random.default_rng(seed)
  return (scale * rng.standard_normal(shape)).astype(np.float32)


def changed(tensors, weight, bias=None, strength=1.0, scale=None):
  """Returns the weight and the bias that {published name: tensor} make."""
  parts = {lora_names.parse(f'x.{name}').part: x for name, x in tensors.items()}
  layer = layer_parts.Layer(weight.shape, None if bias is None else bias.shape)
  shapes = {part: x.shape for part, x in parts.items()}
  assert layer_parts.check_shapes(shapes, layer) is None
  if scale is None:
    scale = layer_parts.scale_of(parts, layer_parts.rank_of(shapes))
  made = layer_parts.make_deltas(parts, scale, layer)
  return [
    array if leaf not in made else made[leaf].merged(array, strength)
    for leaf, array in (('weight', weight), ('bias', bias))
  ]


def assert_close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('strength', [0.0, -0.5, 1.0])
def test_strength_interpolates(strength):
  """A strength of 0 changes nothing, whatever the method."""
  weight, bias = random(LINEAR, 0, 1.0), random(LINEAR[:1], 1)
  down, up = random((4, 20), 2), random((24, 4), 3)
  files = {
    'lora': {'lora_down.weight': down, 'lora_up.weight': up},
    'diff': {'diff': random(LINEAR, 4), 'diff_b': random(LINEAR[:1], 5)},
    'loha': {
      'hada_w1_a': up,
      'hada_w1_b': down,
      'hada_w2_a': up[:, ::-1],
      'hada_w2_b': down,
    },
    'lokr': {'lokr_w1': random((4, 4), 6), 'lokr_w2': random((6, 5), 7)},
    'oft': {'oft_blocks': random((4, 6, 6), 8)},
  }
  ends = {'a1': (20, 4), 'a2': (4, 20), 'b1': (24, 4), 'b2': (4, 20)}
  files['glora'] = {
    f'{end}.weight': random(shape, 10 + i)
    for i, (end, shape) in enumerate(ends.items())
  }
  files['dora'] = files['lora'] | {'dora_scale': abs(random((24, 1), 9))}
  for name, tensors in files.items():
    whole = changed(tensors, weight, bias)
    part = changed(tensors, weight, bias, strength)
    for before, after, made in zip((weight, bias), whole, part):
      assert_close(made, before + strength * (after - before))
    assert np.abs(whole[0] - weight).max() > 0.05, name


def peft_layer(config, shape):
  """Returns (PEFT's layer with random numbers, its tensors, the base layer)."""
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  torch.manual_seed(0)
  if len(shape) == 2:
    base = torch.nn.Linear(shape[1], shape[0])
  else:
    base = torch.nn.Conv2d(shape[1], shape[0], shape[2:], padding=1)
  net = torch.nn.Sequential(base)
  weights = [x.detach().numpy().copy() for x in (base.weight, base.bias)]
  kind = config.pop('peft_type', None)
  kind, config = (
    (getattr(peft, f'{kind}Config'), config | {'alpha': 6})
    if kind
    else (peft.LoraConfig, config)
  )
  settings = kind(r=4, target_modules=['0'], **config)
  wrapped = peft.get_peft_model(net, settings)
  with torch.no_grad():
    for name, x in wrapped.named_parameters():
      if x.requires_grad and 'magnitude' not in name:
        x.copy_(0.3 * torch.randn(x.shape))
      elif 'magnitude' in name:
        x.mul_(1 + 0.3 * torch.rand(x.shape))
  tensors = {
    name.removeprefix('base_model.model.0.'): x.numpy().copy()
    for name, x in peft.get_peft_model_state_dict(wrapped).items()
  }
  merged = wrapped.merge_and_unload()[0]
  expected = [x.detach().numpy() for x in (merged.weight, merged.bias)]
  return tensors, weights, expected


@pytest.mark.torch
@pytest.mark.parametrize('shape', [LINEAR, CONV], ids=str)
@pytest.mark.parametrize(
  'config',
  [
    {'lora_alpha': 6},
    {'lora_alpha': 6, 'use_dora': True},
    {'lora_alpha': 6, 'lora_bias': True},
    {'peft_type': 'LoHa'},
    {'peft_type': 'LoHa', 'use_effective_conv2d': True},
    {'peft_type': 'LoKr'},
    {'peft_type': 'LoKr', 'decompose_both': True, 'decompose_factor': 2},
    {'peft_type': 'LoKr', 'use_effective_conv2d': True},
  ],
  ids=str,
)
def test_as_peft(config, shape):
  tensors, weights, expected = peft_layer(dict(config), shape)
  tensors['alpha'] = np.float32(6)
  for ours, theirs in zip(changed(tensors, *weights, scale=1.5), expected):
    assert_close(ours, theirs)
  assert np.abs(expected[0] - weights[0]).max() > 0.05


def lycoris_layer(name, shape, **settings):
  """Returns (weight and bias, tensors of LyCORIS, an input, its output)."""
  torch = pytest.importorskip('torch')
  modules = pytest.importorskip('lycoris.modules')
  torch.manual_seed(0)
  if name == 'NormModule':
    base, x = torch.nn.GroupNorm(4, shape[0]), torch.randn(2, shape[0], 5, 5)
  elif len(shape) == 2:
    base, x = torch.nn.Linear(shape[1], shape[0]), torch.randn(7, shape[1])
  else:
    base = torch.nn.Conv2d(shape[1], shape[0], shape[2:], padding=1)
    x = torch.randn(2, shape[1], 5, 5)
  weights = [p.detach().numpy().copy() for p in (base.weight, base.bias)]
  made = getattr(modules, name)('x', base, 1.0, lora_dim=6, alpha=3, **settings)
  made.apply_to()
  with torch.no_grad():
    for key, p in made.named_parameters():
      noise = torch.randn(p.shape)
      is_factor = key in ('dora_scale', 'rescale')
      p.copy_(p * (1 + 0.3 * noise.abs()) if is_factor else p + 0.3 * noise)
    tensors = {k: p.numpy().copy() for k, p in made.state_dict().items()}
    return weights, tensors, x, base(x).numpy()


@pytest.mark.torch
@pytest.mark.parametrize('shape', [LINEAR, CONV], ids=str)
@pytest.mark.parametrize(
  'name, settings',
  [
    ('LoConModule', {}),
    ('LoConModule', {'use_tucker': True}),
    ('LoConModule', {'weight_decompose': True}),
    ('LoConModule', {'weight_decompose': True, 'wd_on_out': False}),
    ('LohaModule', {}),
    ('LohaModule', {'use_tucker': True}),
    ('LohaModule', {'weight_decompose': True}),
    ('LokrModule', {}),
    ('LokrModule', {'factor': 4, 'use_tucker': True}),
    ('LokrModule', {'factor': 4, 'decompose_both': True}),
    ('LokrModule', {'full_matrix': True, 'weight_decompose': True}),
    ('FullModule', {}),
    ('NormModule', {}),
    ('GLoRAModule', {}),
    ('DiagOFTModule', {}),
    ('DiagOFTModule', {'constraint': 0.01, 'rescaled': True}),
    ('ButterflyOFTModule', {}),
    ('ButterflyOFTModule', {'constraint': 0.01, 'rescaled': True}),
  ],
  ids=str,
)
def test_as_lycoris(name, shape, settings):
  (weight, bias), tensors, x, expected = lycoris_layer(name, shape, **settings)
  functional = pytest.importorskip('torch').nn.functional
  torch = pytest.importorskip('torch')
  before = torch.from_numpy(weight), torch.from_numpy(bias)
  after = [torch.from_numpy(x) for x in changed(tensors, weight, bias)]
  if name == 'NormModule':
    plain, ours = (functional.group_norm(x, 4, *p) for p in (before, after))
  elif len(shape) == 2:
    plain, ours = (functional.linear(x, *p) for p in (before, after))
  else:
    plain, ours = (functional.conv2d(x, *p, padding=1) for p in (before, after))
  size = np.abs(expected).max()
  np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=3e-6 * size)
  assert np.abs(expected - plain.numpy()).max() > 0.05 * size
