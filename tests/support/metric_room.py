"""A folder with all that a measurement of images reads, its nets tiny."""

import jax
import numpy as np

from sdxl_jax.evaluation import frechet
from sdxl_jax.models import clip_image, inception
from sdxl_jax.weights import inception_weights, safetensors_file
from sdxl_jax.weights.diffusers import tensor_names
from tests.support import random_images, random_params, tiny_clip

PROMPTS = 'a fox', 'a pig', 'a red cat', 'a cow', 'fog'


def make(folder):
  """Writes weights of the metrics (W), samples (S), real images (R), prompts.

  Inception has its full size, and random weights.
  """
  shapes = inception_weights.shapes(inception.InceptionConfig())
  fresh = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  save(
    folder / 'W' / 'pt_inception-2015-12-05.safetensors',
    random_params.draw(fresh),
  )
  pair = tiny_clip.PAIR.init(jax.random.key(0))
  for name in ('clip-vit-base-patch32', 'clip-vit-large-patch14-336'):
    save(folder / 'W' / name / 'model.safetensors', pair['image'], pair['text'])
  random_images.write(folder / 'S', [(60, 80)] * 5, seed=1)
  random_images.write(folder / 'R', [(64, 64)] * 6, seed=2)
  (folder / 'prompts.txt').write_text('\n'.join(PROMPTS) + '\n')
  rng = np.random.default_rng(0)
  spread = np.diag(rng.uniform(0, 1, 2048))
  known = frechet.Statistics(rng.uniform(0, 1, 2048), spread)
  frechet.save_statistics(folder / 'val2014.npz', known)
  return folder


def enter(folder, monkeypatch):
  """Makes the folder the current one, and the published names tiny nets."""
  for name in ('ViT-B/32', 'ViT-L/14@336'):
    monkeypatch.setitem(clip_image.PAIRS, name, tiny_clip.PAIR)
  monkeypatch.chdir(folder)


def save(path, *trees):
  """Writes parameters under their published names."""
  path.parent.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for tree in trees:
    tensors |= tensor_names.tensors(jax.tree.map(np.asarray, tree))
  safetensors_file.write(path, tensors)
