"""Stage 0 against the reference's formulas, computed with PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import transform
from sdxl_jax.models import autoencoder_gan, discriminator, lpips, vae
from sdxl_jax.training import autoencoder_task
from tests.support import folders, golden_sets

WEIGHTS = golden_sets.SETS[0] / 'tiny' / 'base'
SETTINGS = dict(
  perceptual_weight=0.7, kl_weight=1e-3, adversary_weight=0.5, adversary_start=4
)
LOGVAR = 0.3


@pytest.fixture(scope='module')
def setup():
  """Nets, with the tiny published autoencoder, and parameters."""
  config, published = folders.load_component(WEIGHTS, 'vae')
  nets = autoencoder_gan.AutoencoderGAN(
    config,
    discriminator.DiscriminatorConfig(features=8),
    lpips.LPIPSConfig(),
  )
  params = nets.init(jax.random.key(1)) | {'vae': published}
  # Heads are never negative.
  for i in range(5):
    params['lpips'][f'lin_{i}'] = jax.tree.map(
      jnp.abs, params['lpips'][f'lin_{i}']
    )
  params['logvar'] = jnp.float32(LOGVAR)
  return nets, params


def pictures(seed=0):
  """Smooth ones, of which an autoencoder can make something."""
  rng = np.random.default_rng(seed)
  small = rng.uniform(-1, 1, (3, 8, 6, 3)).astype(np.float32)
  return jax.image.resize(small, (3, 64, 48, 3), 'bicubic').clip(-1, 1)


def make_task(nets, optimizer=None, **changes):
  return autoencoder_task.make_autoencoder_task(
    nets,
    optimizer or optax.sgd(1.0),
    batch_spec=None,
    **SETTINGS | changes,
  )


def run(task, params, part, key=None):
  trained = {n: params[n] for n in ('vae', 'discriminator', 'logvar')}
  frozen = {'lpips': params['lpips']}
  key = jax.random.key(5) if key is None else key
  return jax.jit(task.gradients)(
    trained, frozen, {'image': pictures()}, key, part
  )


def in_torch(nets, params, part):
  """(gradients {net: {name: tensor}}, metrics), by autograd alone."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  from tests.support import discriminator_in_torch as critics

  net = diffusers.AutoencoderKL.from_pretrained(WEIGHTS / 'vae').float()
  judge = critics.discriminator(params['discriminator'], 8)
  image = critics.image(pictures())
  logvar = torch.tensor(LOGVAR, requires_grad=True)
  posterior = net.encode(image).latent_dist
  key = jax.random.fold_in(jax.random.key(5), part)
  b, c, h, w = posterior.mean.shape
  noise = critics.image(jax.random.normal(key, (b, h, w, c)))
  x = net.decode(posterior.mean + posterior.std * noise).sample

  distance = critics.distance(params['lpips'], image, x)
  error = (image - x).abs() + 0.7 * distance[:, None, None, None]
  nll = (error / logvar.exp() + logvar).sum() / b
  kl = (
    0.5
    * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).sum()
    / b
  )
  opposed = -judge(x).mean()
  last = net.decoder.conv_out.weight
  by = lambda value: torch.autograd.grad(value, last, retain_graph=True)[0]
  weight = (by(nll).norm() / (by(opposed).norm() + 1e-4)).clamp(0.0, 1e4)
  weight = 0.5 * weight.detach() * (part >= 4)
  loss = nll + 1e-3 * kl + weight * opposed
  loss.backward()

  judge.zero_grad()
  real, fake = judge(image), judge(x.detach())
  relu = torch.nn.functional.relu
  judged = 0.5 * (relu(1 - real).mean() + relu(1 + fake).mean()) * (part >= 4)
  judged.backward()
  gradients = {
    'vae': {n: p.grad for n, p in net.named_parameters()},
    'discriminator': {f'main.{n}': p.grad for n, p in judge.named_parameters()},
    'logvar': logvar.grad,
  }
  metrics = {
    'loss': loss,
    'l1': (image - x).abs().mean(),
    'lpips': distance.mean(),
    'kl': kl,
    'adversary_weight': weight,
    'discriminator_loss': judged,
    'logits_real': real.mean(),
    'logits_fake': fake.mean(),
  }
  return gradients, {n: float(x.detach()) for n, x in metrics.items()}


@pytest.mark.parametrize('part', [3, 4])
def test_as_in_torch(setup, part):
  """Losses, weight and gradients, before and after the adversary's start."""
  nets, params = setup
  expected, expected_metrics = in_torch(nets, params, part)
  from tests.support import discriminator_in_torch as critics

  gradients, metrics = run(make_task(nets), params, part)
  for name, value in expected_metrics.items():
    assert float(metrics[name]) == pytest.approx(value, rel=2e-4, abs=1e-6), (
      name
    )
  assert (expected_metrics['adversary_weight'] > 0) == (part == 4)
  assert float(gradients['logvar']) == pytest.approx(
    float(expected['logvar']), rel=1e-4
  )
  for net in ('vae', 'discriminator'):
    ours = critics.state_of(gradients[net])
    assert set(ours) == set(expected[net])
    largest = max(float(g.abs().max()) for g in expected[net].values())
    for name, gradient in expected[net].items():
      np.testing.assert_allclose(
        ours[name], gradient, atol=2e-4 * largest, err_msg=name
      )
      if part == 4 or net == 'vae':
        assert float(gradient.abs().max()) > 0, name


def test_parts_count_as_one_step(setup):
  """With two micro-batches per step the adversary starts at part 8."""
  nets, params = setup
  task = make_task(nets, parts=2)
  weights = [run(task, params, p)[1]['adversary_weight'] for p in (7, 8)]
  assert weights[0] == 0 < weights[1]


def test_without_lpips(setup):
  nets, params = setup
  nets = dataclasses.replace(nets, lpips=None)
  assert set(nets.configs) == {'vae', 'discriminator'}
  task = make_task(nets, perceptual_weight=0.0)
  _, metrics = run(task, params, 0)
  assert metrics['lpips'] == 0 < metrics['l1']


def test_optimizers(setup):
  """Each net learns at its rate; what is frozen keeps its bits, EMA and all."""
  nets, params = setup

  def stepped(learn_logvar, decoder_only):
    optimizer = autoencoder_task.make_optimizer(
      lambda: optax.adam(1e-3), transform.ema(0.9), learn_logvar, decoder_only
    )
    task = make_task(nets, optimizer)
    state = task.init(jax.random.key(0), {n: params[n] for n in nets.configs})
    gradients, _ = run(task, state.params | {'lpips': params['lpips']}, 4)
    after, _ = jax.jit(task.update)(state, gradients)
    same = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))
    average = transform.ema_params(after.opt_state)
    return {
      (name, module): (
        same(x, after.params[name][module]),
        same(x, average[name][module]),
      )
      for name in ('vae', 'discriminator')
      for module, x in state.params[name].items()
    } | {'logvar': float(after.params['logvar'])}

  for decoder_only in (False, True):
    kept = stepped(decoder_only, decoder_only)
    assert (kept.pop('logvar') != 0) == decoder_only
    for (_, module), unchanged in kept.items():
      frozen = decoder_only and module in ('encoder', 'quant_conv')
      assert unchanged == (frozen, frozen), module


def test_adaptive_weight_is_bounded():
  one, none = jnp.ones(4), jnp.zeros(4)
  assert autoencoder_task.adaptive_weight(one, one) == pytest.approx(
    1, rel=1e-4
  )
  assert autoencoder_task.adaptive_weight(one, none) == 1e4
  assert autoencoder_task.adaptive_weight(none, one) == 0


def test_float16_is_refused():
  with pytest.raises(ValueError, match='float16'):
    vae.VAEConfig(dtype='float16')
