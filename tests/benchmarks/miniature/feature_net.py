"""Classifies the objects, colours and counts of scenes.

FID in miniature uses the features of its penultimate layer in place of those of
Inception, which was trained on photographs. Training takes a minute or two, and
is determined by the seed.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization
from jaxtyping import Array, Float

from sdxl_jax import atomic_write
from sdxl_jax.data.sources import synthetic
from tests.benchmarks.miniature import scenes

FEATURES = 64
STEPS, BATCH, RATE = 600, 64, 2e-3
TRAINED, TESTED = 3000, 500  # squares; of other sizes a quarter
CHUNK = 100  # images in one call


class FeatureNet(nn.Module):
  """Images of any size in [-1, 1] to features, and these to logits."""

  objects: int
  colours: int
  counts: int = 2

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w 3']
  ) -> tuple[Float[Array, 'b d'], list[Float[Array, 'b k']]]:
    for width, stride in (16, 2), (32, 1), (48, 2), (64, 1):
      x = nn.relu(nn.Conv(width, (3, 3), (stride, stride))(x))
    # Of both, so that one small object counts as much as a background.
    x = jnp.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1)
    features = nn.relu(nn.Dense(FEATURES)(x))
    heads = self.objects, self.colours, self.counts
    return features, [nn.Dense(n)(features) for n in heads]


class Features(NamedTuple):
  """A trained net, with the share of labels that it gets right."""

  net: FeatureNet
  params: Any
  accuracy: dict[str, float]

  def __call__(
    self, images: scenes.Images
  ) -> tuple[Float[np.ndarray, 'n d'], list[Float[np.ndarray, 'n k']]]:
    """Returns features and log-probabilities of all heads."""
    features, heads = [], []
    for start in range(0, len(images), CHUNK):
      part = to_float(images[start : start + CHUNK])
      found, logits = apply(self.net, self.params, part)
      features.append(np.asarray(found))
      heads.append([np.asarray(jax.nn.log_softmax(x)) for x in logits])
    return np.concatenate(features), [np.concatenate(h) for h in zip(*heads)]


def to_float(images: scenes.Images) -> Float[np.ndarray, 'n h w 3']:
  """Returns images in [-1, 1]."""
  return np.asarray(images, np.float32) / 127.5 - 1


@functools.partial(jax.jit, static_argnums=0)
def apply(net, params, images):
  """Applies the net to images in [-1, 1]."""
  return net.apply({'params': params}, images)


def train(
  vocabulary: synthetic.Vocabulary,
  sizes: Sequence[scenes.Size],
  seed: int = 0,
  steps: int | None = None,
  say: Callable[[str], Any] = print,
) -> Features:
  """Trains a net on scenes, whose objects are anywhere and of any size.

  Args:
    vocabulary: of the scenes.
    sizes: of the images; most are of the first.
    seed: of scenes, parameters and order.
    steps: of 64 images of one size; None: STEPS.
    say: takes a line on the progress.
  """
  steps = steps or STEPS
  net = FeatureNet(vocabulary.objects, vocabulary.colours)
  counts = [TRAINED if i == 0 else TRAINED // 4 for i in range(len(sizes))]
  data = [
    scenes.make(vocabulary, size, n, 100 + seed, 1.0)
    for size, n in zip(sizes, counts)
  ]
  first = to_float(data[0].images[:1])
  params = net.init(jax.random.key(seed), first)['params']
  optimizer = optax.adam(optax.cosine_decay_schedule(RATE, steps))
  state = optimizer.init(params)

  @jax.jit
  def update(params, state, images, labels):
    def loss_of(params):
      _, heads = net.apply({'params': params}, images)
      losses = [
        optax.softmax_cross_entropy_with_integer_labels(logits, label)
        for logits, label in zip(heads, labels)
      ]
      return sum(x.mean() for x in losses)

    loss, grads = jax.value_and_grad(loss_of)(params)
    changes, state = optimizer.update(grads, state)
    return optax.apply_updates(params, changes), state, loss

  rng = np.random.default_rng(seed)
  shares = np.array(counts) / sum(counts)
  for step in range(steps):
    part = data[rng.choice(len(data), p=shares)]
    rows = rng.integers(len(part.captions), size=BATCH)
    images = to_float(part.images[rows])
    params, state, loss = update(
      params, state, images, [*part.labels.take(rows)]
    )
    if (step + 1) % 200 == 0:
      say(f'feature net: step {step + 1} of {steps}, loss {float(loss):.3f}')
  features = Features(net, params, {})
  tested = scenes.make(vocabulary, sizes[0], TESTED, 200 + seed, 1.0)
  _, heads = features(tested.images)
  accuracy = {
    name: float((head.argmax(1) == label).mean())
    for name, head, label in zip(scenes.Labels._fields, heads, tested.labels)
  }
  return features._replace(accuracy=accuracy)


def load_or_train(
  file: pathlib.Path,
  vocabulary: synthetic.Vocabulary,
  sizes: Sequence[scenes.Size],
  say: Callable[[str], Any] = print,
) -> Features:
  """Returns the net of a file, which is written at the first call."""
  if file.is_file():
    known = serialization.msgpack_restore(file.read_bytes())
    net = FeatureNet(vocabulary.objects, vocabulary.colours)
    return Features(net, known['params'], known['accuracy'])
  features = train(vocabulary, sizes, say=say)
  content = {
    'params': jax.device_get(features.params),
    'accuracy': features.accuracy,
  }
  atomic_write.write_bytes(file, serialization.msgpack_serialize(content))
  return features
