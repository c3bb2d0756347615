"""Factors of each kind, compared with those of LyCORIS and PEFT."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import lora, lora_kinds

SHAPES = [(6, 8), (5, 6, 8), (3, 3, 6, 8)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize(
  'algo, rank',
  [('lora', 2), ('loha', 2), ('lokr', 1), ('lokr', 4), ('full', 1)],
)
def test_differences_begin_at_zero(shape, algo, rank):
  """And as large as their kernels, of a stack each with its own numbers."""
  fresh = lora_kinds.init(jax.random.key(0), shape, algo, rank)
  assert set(fresh) <= set(lora_kinds.FACTORS)
  whole = lora_kinds.build(fresh)
  assert whole.shape == shape and not np.any(whole)
  drawn = [x for x in fresh.values() if np.any(x)]
  assert bool(drawn) == (algo != 'full')
  for x in drawn:
    assert x.shape[0] != 5 or not np.array_equal(x[0], x[1])


def test_split():
  sizes = {127: (1, 127), 128: (8, 16), 360: (18, 20), 1280: (32, 40)}
  assert {n: lora_kinds.split(n) for n in sizes} == sizes
  assert lora_kinds.split(250, 4) == (2, 125)
  assert lora_kinds.split(360, 16) == (15, 24)
  assert lora_kinds.split(12, 4) == (3, 4)


@pytest.mark.torch
def test_split_as_lycoris():
  functional = pytest.importorskip('lycoris.functional')
  for size in (1, 2, 6, 12, 127, 320, 640, 768, 1280, 2048, 2816, 5120, 10240):
    for factor in (-1, 1, 2, 3, 4, 8, 16, 24):
      expected = functional.factorization(size, factor)
      assert lora_kinds.split(size, factor) == expected, (size, factor)


class Layer(nn.Module):
  """A linear layer under the name that factors have."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='to_q')(x)


@pytest.mark.torch
def test_gradients_of_dora_as_peft():
  """The norm counts as a constant."""
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
  w, bias, x, dy = draw(6, 8), draw(8), draw(7, 6), draw(7, 8)
  a, b, m = draw(6, 3), draw(3, 8), 1 + abs(draw(8))
  base = torch.nn.Linear(6, 8)
  config = peft.LoraConfig(
    r=3, lora_alpha=6, target_modules=['0'], use_dora=True
  )
  theirs = peft.get_peft_model(torch.nn.Sequential(base), config)
  layer = theirs.base_model.model[0]
  down, up = layer.lora_A['default'].weight, layer.lora_B['default'].weight
  norm = layer.lora_magnitude_vector['default'].weight
  with torch.no_grad():
    for p, value in (
      (base.weight, w.T),
      (base.bias, bias),
      (down, a.T),
      (up, b.T),
      (norm, m),
    ):
      p.copy_(torch.from_numpy(np.ascontiguousarray(value)))
  inputs = torch.from_numpy(x).requires_grad_()
  out = theirs(inputs)
  out.backward(torch.from_numpy(dy))
  # Ours.
  factors = {'to_q': {'a': a, 'b': b, 'magnitude': m}}
  params = {'unet': {'to_q': {'kernel': w, 'bias': bias}}}
  target = lora.Target('all', '.*', 3, 6.0, dora_wd=True)

  def loss(factors, x):
    ready = lora.fold_scale({'unet': factors}, [target])
    y = lora.apply(Layer(), 'unet', params | {'lora': ready}, x)
    return jnp.vdot(y, dy), y

  (_, y), (grads, dx) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
    factors, x
  )
  pairs = [
    (y, out),
    (dx, inputs.grad),
    (grads['to_q']['a'], down.grad.T),
    (grads['to_q']['b'], up.grad.T),
    (grads['to_q']['magnitude'], norm.grad),
  ]
  for ours, expected in pairs:
    expected = expected.detach().numpy()
    bound = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(ours, expected, 0, bound)
