"""Samples from finished runs and measures them, an experiment each."""

import functools
import pathlib
from typing import Any, NamedTuple

import numpy as np

from configs.claims import (
  autoencoder,
  crop_conditioning,
  multi_aspect,
  size_conditioning,
  small,
)
from sdxl_jax import sample
from sdxl_jax.data import images
from sdxl_jax.data.sources import synthetic
from sdxl_jax.evaluation import reconstruction
from sdxl_jax.training import autoencoder_evaluation, run_setup
from tests.benchmarks.miniature import feature_net, scenes, scores

SAMPLES, REFERENCES = 240, 1000
FEW = 60  # samples at each of several sizes; also those of one call
STEPS, GUIDANCE = 16, 3.0
NO_GUIDANCE = 1.0  # where guidance would hide what is measured
ENLARGED = 2  # original_size of other aspects, relative to the samples
BEST_SCORE = 7.0  # of the refiner's images without noise
SQUARE = small.SIDE, small.SIDE
Rows = dict[str, dict[str, float]]  # {row of the table: {metric: value}}


class Kit(NamedTuple):
  """What all measurements need.

  Attributes:
    features: of FID and of what is on an image.
    vocabulary: of the scenes.
  """

  features: feature_net.Features
  vocabulary: synthetic.Vocabulary


def vocabulary_of(config: Any) -> synthetic.Vocabulary:
  """Returns the vocabulary of a config's scenes."""
  return synthetic.Scenes(**config.data.scenes.to_dict()).vocabulary


@functools.lru_cache(maxsize=16)
def reference(vocabulary, size) -> scenes.Scenes:
  """Makes the scenes that samples of a size are compared with."""
  return scenes.make(vocabulary, size, REFERENCES, seed=7)


def draw(
  pipeline,
  vocabulary,
  seed,
  count=None,
  size=SQUARE,
  guidance_scale=GUIDANCE,
  **options,
):
  """Samples prompts that are drawn as training draws its captions.

  Args:
    pipeline: of a run.
    vocabulary: of its scenes.
    seed: of the prompts and of the noise.
    count: of samples; None: SAMPLES.
    size: (height, width) in px.
    guidance_scale: 1: without guidance.
    **options: of sample.generate.

  Returns:
    uint8 [count, *size, 3], and the labels of the prompts.
  """
  count = count or SAMPLES
  combinations = scenes.draw(vocabulary, count, seed=1000 + seed)
  captions = scenes.captions_of(combinations)
  found = []
  for start in range(0, count, FEW):
    part = captions[start : start + FEW]
    sampled, _ = sample.generate(
      pipeline,
      part,
      seeds=[seed * count + start + i for i in range(len(part))],
      size=size,
      steps=STEPS,
      sampler='euler',
      guidance_scale=guidance_scale,
      **options,
    )
    found.append(images.to_uint8(sampled))
  return np.concatenate(found), scenes.labels_of(combinations)


def describe(kit, vocabulary, sampled, labels, size=SQUARE) -> dict[str, float]:
  """Measures samples of one size, as percentages where they are shares."""
  known = reference(vocabulary, size).images
  sharp = scores.sharpness(known).mean()
  return {
    'fid': scores.fid(kit.features, sampled, known),
    'is': scores.inception_score(kit.features, sampled),
    'right': 100 * scores.right(kit.features, sampled, labels).mean(),
    'cut': 100 * scores.cut_off(sampled).mean(),
    'sharpness': 100 * scores.sharpness(sampled).mean() / sharp,
  }


def measure_size(kit, arm, seed, workdir) -> Rows:
  """Measures an arm of claim (a), also at other original sizes."""
  pipeline = sample.load(workdir)
  sampled, labels = draw(pipeline, kit.vocabulary, seed)
  found = describe(kit, kit.vocabulary, sampled, labels)
  known = scores.sharpness(reference(kit.vocabulary, SQUARE).images).mean()
  if arm == 'size_cond':
    for side in size_conditioning.ORIGINAL_SIZES:
      options = {'original_size': (side, side)}
      part, _ = draw(pipeline, kit.vocabulary, seed, FEW, **options)
      sharp = 100 * scores.sharpness(part).mean() / known
      found[f'sharpness_{side}'] = sharp
  return {arm: found}


def measure_crop(kit, arm, seed, workdir) -> Rows:
  """Measures an arm of claim (b), of one object on each image.

  Guidance moves objects to the middle, the most frequent place: with a scale of
  3, nocond cuts half as many of them.
  """
  vocabulary = vocabulary_of(crop_conditioning.get_config(arm))
  pipeline = sample.load(workdir)
  sampled, labels = draw(pipeline, vocabulary, seed, guidance_scale=NO_GUIDANCE)
  return {arm: describe(kit, vocabulary, sampled, labels)}


def measure_aspects(kit, arm, seed, workdir) -> Rows:
  """Measures an arm of claim (c), on tall, wide and square images."""
  vocabulary = vocabulary_of(multi_aspect.get_config(arm))
  pipeline, found = sample.load(workdir), {}
  sizes = {'tall': multi_aspect.TALL, 'wide': multi_aspect.WIDE}
  for name, size in (sizes | {'square': SQUARE}).items():
    # Of sizes that training had; its images are larger than their buckets.
    original_size = tuple(ENLARGED * side for side in size)
    sampled, labels = draw(
      pipeline, vocabulary, seed, size=size, original_size=original_size
    )
    of_size = describe(kit, vocabulary, sampled, labels, size)
    found |= {f'{metric}_{name}': value for metric, value in of_size.items()}
  for metric in 'fid', 'right', 'cut':
    both = [found[f'{metric}_{name}'] for name in sizes]
    found[metric] = float(np.mean(both))
  return {arm: found}


def measure_refiner(kit, arm, seed, workdir, base) -> Rows:
  """Measures claim (d): the base alone, and with the refiner, same noise."""
  pipeline, refiner = sample.load(base), sample.load(workdir)
  rows = {}
  for name, second in ('base', None), ('base + refiner', refiner):
    sampled, labels = draw(
      pipeline,
      kit.vocabulary,
      seed,
      refiner=second,
      aesthetic_score=BEST_SCORE,
    )
    rows[name] = describe(kit, kit.vocabulary, sampled, labels)
  return rows


def measure_autoencoder(kit, arm, seed, workdir) -> Rows:
  """Measures an arm of claim (e): last parameters and EMA, of each checkpoint.

  A checkpoint before the last is a row of its own: small_batch after as many
  steps as large_batch has.
  """
  config = autoencoder.get_config(arm)
  size = config.global_batch_size
  total = config.total_steps
  steps = dict.fromkeys((autoencoder.STEPS, total))
  rows = {}
  for step in steps:
    weights = pathlib.Path(workdir) / 'checkpoints' / str(step)
    for average, name in ('none', 'last'), ('ema', 'EMA'):
      row = f'batch {size}, {step:,} steps, {name}'
      rows[row] = reconstructions(kit, config, weights, average)
  return rows


def reconstructions(kit, config, weights, average) -> dict[str, float]:
  """Measures reconstructions of scenes that were not trained on."""
  known = scenes.make(kit.vocabulary, SQUARE, SAMPLES, seed=8, jitter=1.0)
  setup = run_setup.set_up_locally(config, weights, say=lambda line: None)
  params = autoencoder_evaluation.load_params(
    setup, weights, average, say=lambda line: None
  )
  values, found = {}, []
  for start in range(0, len(known.images), FEW):
    part = feature_net.to_float(known.images[start : start + FEW])
    measured, rebuilt = reconstruction.measure(setup.model, params, part)
    for name in reconstruction.NAMES:
      values.setdefault(name, []).append(np.asarray(measured[name]))
    found.append(images.to_uint8(np.asarray(rebuilt)))
  means = {n: float(np.concatenate(v).mean()) for n, v in values.items()}
  fid = scores.fid(kit.features, np.concatenate(found), known.images)
  return means | {'rfid': fid}
