"""Measures the metrics of images beside pytorch-fid and open_clip.

  python -m tests.benchmarks.metric_speed --images 64

Random weights and images of --size px in memory: what is timed are the nets on
this CPU, and the distance of 5,000 random features of 2,048 numbers. Ours and
theirs take turns, in batches of --batch; the first of each compiles or warms up
and is left out. Prints seconds of the fastest turn, and the ratio.
Needs torch, and without their dependencies pytorch-fid, torchvision and
open-clip-torch, with timm, ftfy and wcwidth.
"""

import functools
import pathlib
import tempfile
import time

import jax
import numpy as np
import torch
from absl import app, flags
from PIL import Image

from sdxl_jax.evaluation import features, frechet, preprocessing
from tests.support import (
  inception_in_torch,
  random_images,
  torchvision_package,
)

FEATURES, COUNT = 2048, 5000  # of MLPerf


def fastest(functions, turns):
  """Times functions in turns; returns the fastest seconds of each."""
  seconds = [[] for _ in functions]
  for _ in range(turns + 1):
    for function, found in zip(functions, seconds):
      start = time.perf_counter()
      function()
      found.append(time.perf_counter() - start)
  return [min(found[1:]) for found in seconds]


def inception(images, batch):
  """Returns functions (ours, theirs) that compute FID's features."""
  net = inception_in_torch.make()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'pt_inception-2015-12-05.pth'
    torch.save(net.state_dict(), path)
    extractor = features.load_inception(path)
  package = torchvision_package.pytorch_fid('inception')
  package.load_state_dict_from_url = lambda *_, **__: net.state_dict()
  reference = package.InceptionV3().eval()

  def theirs():
    for pixels in batches(images, batch):
      reference(pixels)

  ours = functools.partial(
    features.compute, extractor, images, batch_size=batch
  )
  return ours, theirs


def batches(images, batch):
  """Yields images as pytorch-fid's loader does, float32 [b, 3, h, w]."""
  for i in range(0, len(images), batch):
    rows = [np.asarray(Image.fromarray(x)) for x in images[i : i + batch]]
    yield torch.tensor(np.stack(rows).transpose(0, 3, 1, 2)).float() / 255


def clip(images, batch):
  """Returns functions (ours, theirs) that embed images by ViT-B/32."""
  open_clip = torchvision_package.open_clip()
  model, _, prepare = open_clip.create_model_and_transforms('ViT-B-32')
  model.eval()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'open_clip_pytorch_model.bin'
    torch.save(model.state_dict(), path)
    loaded = features.load_clip('ViT-B/32', path)
  extractor = features.make_clip(loaded, preprocessing.clip_crop)

  def theirs():
    for i in range(0, len(images), batch):
      rows = [prepare(Image.fromarray(x)) for x in images[i : i + batch]]
      model.encode_image(torch.stack(rows))

  ours = functools.partial(
    features.compute, extractor, images, batch_size=batch
  )
  return ours, theirs


def distance():
  """Returns functions (ours, theirs) from features to FID."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, COUNT, FEATURES)).astype(np.float32)
  score = torchvision_package.pytorch_fid('fid_score')

  def ours():
    frechet.distance(*frechet.statistics(x), *frechet.statistics(y))

  def theirs():
    found = [z for v in (x, y) for z in (v.mean(0), np.cov(v, rowvar=False))]
    score.calculate_frechet_distance(*found)

  return ours, theirs


def main(argv):
  del argv
  args = flags.FLAGS
  images = random_images.make([(args.size, args.size)] * args.images)
  print(f'{args.images} images of {args.size} px, {jax.default_backend()}')
  made = {
    'Inception, beside pytorch-fid': lambda: inception(images, args.batch),
    'CLIP ViT-B/32, beside open_clip': lambda: clip(images, args.batch),
    f'FID of {COUNT} images, beside pytorch-fid': distance,
  }
  for name, make in made.items():
    with torch.no_grad():
      ours, theirs = fastest(make(), args.turns)
    print(f'{name}: {ours:.2f} s and {theirs:.2f} s, {ours / theirs:.2f}')


if __name__ == '__main__':
  flags.DEFINE_integer('images', 64, 'number of images')
  flags.DEFINE_integer('size', 512, 'px of their sides')
  flags.DEFINE_integer('batch', 8, 'images at once')
  flags.DEFINE_integer('turns', 3, 'of each')
  app.run(main)
