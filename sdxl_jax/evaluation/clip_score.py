"""CLIP score: how well images fit their prompts (Hessel et al. 2021).

100 times the cosine of the embeddings of an image and of its prompt, as MLPerf
Inference reports it, which takes ViT-B/32 (arXiv 2104.08718 multiplies by 250,
and takes 0 in place of negative cosines).
"""

import html
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Float, Int

from sdxl_jax.distributed import batch_padding, device_mesh, sharding
from sdxl_jax.evaluation import bootstrap, mmd
from sdxl_jax.models import clip_image
from sdxl_jax.text import tokenizer

SCALE = 100.0
NETS = ('ViT-B/32', 'ViT-L/14', 'ViT-H-14')


def tokenize(prompts: Sequence[str]) -> Int[np.ndarray, 'b 77']:
  """Returns the token ids of prompts, cut after 77.

  Entities of HTML are decoded twice, as open_clip does.
  """
  plain = [html.unescape(html.unescape(prompt)) for prompt in prompts]
  return tokenizer.load()(plain)[:, 0]


def embed(
  pair: clip_image.CLIP,
  params: dict[str, Any],
  prompts: Sequence[str],
  mesh: jax.sharding.Mesh | None = None,
  batch_size: int = 8,
) -> Float[np.ndarray, 'n p']:
  """Embeds prompts, each as a vector of length 1; see features.compute_all."""
  if not len(prompts):
    raise ValueError('there are no prompts to embed')
  mesh = mesh or device_mesh.make_mesh(devices=jax.local_devices())
  size = batch_size * device_mesh.row_devices(mesh)
  params = jax.device_put({'text': params['text']}, sharding.replicated(mesh))
  program, found = jax.jit(pair.embed_texts), []
  ids = tokenize(prompts)
  for start in tqdm.trange(0, len(ids), size, desc='prompts', delay=2):
    rows = ids[start : start + size]
    padding = rows[-1:].repeat(size - len(rows), 0)
    put = batch_padding.Rows(mesh, size)
    array = put.place(np.concatenate([rows, padding]))
    with jax.default_matmul_precision('highest'):
      found.append(put.fetch(program(params, array))[: len(rows)])
  return np.concatenate(found)


def scores(images: mmd.Rows, texts: mmd.Rows) -> Float[np.ndarray, ' n']:
  """Returns the score of each image with its text, from their embeddings.

  Raises:
    ValueError: unless there is one text for each image.
  """
  if len(images) != len(texts):
    raise ValueError(
      f'{len(images)} images and {len(texts)} prompts: the CLIP score needs a '
      'prompt for each image, in the order of the names of the images'
    )
  mmd.check_widths(images, texts)
  images, texts = np.asarray(images, np.float64), np.asarray(texts, np.float64)
  lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
  return SCALE * (images * texts).sum(axis=1) / lengths


def compute(
  images: mmd.Rows,
  texts: mmd.Rows,
  resamples: int = 0,
  seed: int = bootstrap.SEED,
) -> bootstrap.Metric:
  """Returns the mean score with its interval; see `scores`."""
  return bootstrap.mean(scores(images, texts), resamples, seed)
