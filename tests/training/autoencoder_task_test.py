"""Stage 0 against the reference's formulas, computed with PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdxl_jax.ema import transform
from sdxl_jax.models import (
  autoencoder_gan,
  discriminator,
  from_config,
  lpips,
)
from sdxl_jax.training import autoencoder_task, tasks
from tests.support import autoencoder_config, folders, golden_sets

WEIGHTS = golden_sets.SETS[0] / 'tiny' / 'base'
SETTINGS = dict(
  perceptual_weight=0.7, kl_weight=1e-3, adversary_weight=0.5, start=4
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


def smooth_images(seed=0):
  """Images that an autoencoder can reconstruct to some degree."""
  rng = np.random.default_rng(seed)
  small = rng.uniform(-1, 1, (3, 8, 6, 3)).astype(np.float32)
  return jax.image.resize(small, (3, 64, 48, 3), 'bicubic').clip(-1, 1)


def make_task(nets, optimizer=None, **changes):
  return autoencoder_task.make_autoencoder_task(
    autoencoder_task.AutoencoderLoss(nets, **SETTINGS | changes),
    optimizer or optax.sgd(1.0),
    global_batch_size=3,
  )


def run(task, params, micro_step, key=None):
  trained = {n: params[n] for n in ('vae', 'discriminator', 'logvar')}
  frozen = {'lpips': params['lpips']}
  key = jax.random.key(5) if key is None else key
  return jax.jit(task.gradients)(
    trained, frozen, {'image': smooth_images()}, key, micro_step
  )


def in_torch(nets, params, micro_step):
  """(gradients {net: {name: tensor}}, metrics), by autograd alone."""
  torch = pytest.importorskip('torch')
  diffusers = pytest.importorskip('diffusers')
  from tests.support import discriminator_in_torch as critics

  net = diffusers.AutoencoderKL.from_pretrained(WEIGHTS / 'vae').float()
  judge = critics.discriminator(params['discriminator'], 8)
  image = critics.image(smooth_images())
  logvar = torch.tensor(LOGVAR, requires_grad=True)
  posterior = net.encode(image).latent_dist
  key = jax.random.fold_in(jax.random.key(5), micro_step)
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

  def by(value):
    return torch.autograd.grad(value, last, retain_graph=True)[0]

  weight = (by(nll).norm() / (by(opposed).norm() + 1e-4)).clamp(0.0, 1e4)
  weight = 0.5 * weight.detach() * (micro_step >= 4)
  loss = nll + 1e-3 * kl + weight * opposed
  loss.backward()

  judge.zero_grad()
  real, fake = judge(image), judge(x.detach())
  relu = torch.nn.functional.relu
  judged = (
    0.5 * (relu(1 - real).mean() + relu(1 + fake).mean()) * (micro_step >= 4)
  )
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


@pytest.mark.parametrize('micro_step', [3, 4])
def test_as_in_torch(setup, micro_step):
  """Losses, weight and gradients, before and after the start."""
  nets, params = setup
  expected, expected_metrics = in_torch(nets, params, micro_step)
  from tests.support import discriminator_in_torch as critics

  gradients, metrics = run(make_task(nets), params, micro_step)
  for name, value in expected_metrics.items():
    assert float(metrics[name]) == pytest.approx(value, rel=2e-4, abs=1e-6), (
      name
    )
  assert (expected_metrics['adversary_weight'] > 0) == (micro_step == 4)
  assert float(gradients['logvar']) == pytest.approx(
    float(expected['logvar']), rel=1e-4
  )
  for net in ('vae', 'discriminator'):
    actual = critics.state_of(gradients[net])
    assert set(actual) == set(expected[net])
    largest = max(float(g.abs().max()) for g in expected[net].values())
    for name, gradient in expected[net].items():
      np.testing.assert_allclose(
        actual[name], gradient, atol=2e-4 * largest, err_msg=name
      )
      if micro_step == 4 or net == 'vae':
        assert float(gradient.abs().max()) > 0, name


def test_start_counts_optimizer_steps():
  """With two micro-batches per step the discriminator starts at twice it."""
  config = autoencoder_config.get_config()
  config.accumulation_steps = 2
  config.autoencoder.adversary_start = 4
  task = tasks.make_task(config, from_config.make_model(config))
  params = jax.jit(task.init)(jax.random.key(0)).params
  image = smooth_images()[:, :32, :32]
  gradients = jax.jit(task.gradients)
  weights = []
  for micro_step in (7, 8):
    _, metrics = gradients(
      params, {}, {'image': image}, jax.random.key(5), micro_step
    )
    weights.append(metrics['adversary_weight'])
  assert weights[0] == 0 < weights[1]


def test_the_discriminator_from_the_first_step(setup):
  """A start of 0 means from the beginning."""
  nets, params = setup
  _, metrics = run(make_task(nets, start=0), params, 0)
  assert metrics['adversary_weight'] > 0 and metrics['discriminator_loss'] > 0


@pytest.mark.slow
def test_a_discriminator_without_influence(setup):
  """A weight of 0 trains the discriminator only."""
  nets, params = setup
  gradients, metrics = run(make_task(nets, adversary_weight=0.0), params, 4)
  inactive, _ = run(make_task(nets, start=5), params, 4)
  jax.tree.map(np.testing.assert_array_equal, gradients['vae'], inactive['vae'])
  assert metrics['adversary_weight'] == 0 < metrics['discriminator_loss']
  trained = [
    jnp.any(g != 0) for g in jax.tree.leaves(gradients['discriminator'])
  ]
  assert any(trained)


def test_without_lpips(setup):
  nets, params = setup
  nets = dataclasses.replace(nets, lpips=None)
  assert set(nets.configs) == {'vae', 'discriminator'}
  task = make_task(nets, perceptual_weight=0.0)
  _, metrics = run(task, params, 0)
  assert metrics['lpips'] == 0 < metrics['l1']


@pytest.mark.slow
def test_optimizers(setup):
  """Each net learns at its rate; what is frozen keeps its bits, EMA and all."""
  nets, params = setup

  def stepped(learn_logvar, decoder_only):
    adam = autoencoder_task.make_optimizer(
      lambda: optax.adam(1e-3), learn_logvar, decoder_only
    )
    optimizer = optax.chain(adam, transform.ema(0.9))
    task = make_task(nets, optimizer)
    state = task.init(jax.random.key(0), {n: params[n] for n in nets.configs})
    gradients, _ = run(task, state.params | {'lpips': params['lpips']}, 4)
    after, _ = jax.jit(task.update)(state, gradients)

    def same(a, b):
      return jax.tree.all(jax.tree.map(np.array_equal, a, b))

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
    changes = stepped(decoder_only, decoder_only)
    assert (changes.pop('logvar') != 0) == decoder_only
    for (_, module), unchanged in changes.items():
      frozen = decoder_only and module in ('encoder', 'quant_conv')
      assert unchanged == (frozen, frozen), module


def test_adaptive_weight_is_bounded():
  one, none = jnp.ones(4), jnp.zeros(4)
  assert autoencoder_task.adaptive_weight(one, one) == pytest.approx(
    1, rel=1e-4
  )
  assert autoencoder_task.adaptive_weight(one, none) == 1e4
  assert autoencoder_task.adaptive_weight(none, one) == 0
