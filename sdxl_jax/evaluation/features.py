"""Features of images, computed on all devices while images are read ahead.

A net is a named way from an image to a vector: how it is resized, and the net
that it goes through. All metrics are functions of such vectors.
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float
from PIL import Image

from sdxl_jax.data import prefetching
from sdxl_jax.distributed import (
  batch_padding,
  device_mesh,
  multihost,
  sharding,
)
from sdxl_jax.evaluation import image_folder, preprocessing
from sdxl_jax.models import clip_image, inception
from sdxl_jax.weights import clip_weights, inception_weights, metric_files

Features = Float[np.ndarray, 'n d']


@dataclasses.dataclass(frozen=True)
class Extractor:
  """Computes features of images.

  Attributes:
    name: of the features, with all that they depend on but the weights.
    prepare: (RGB image) -> uint8, or float32 in [0, 1], [size, size, 3].
    apply: (params, float32 [b, size, size, 3] in [0, 1]) -> [b, d].
    params: of the net.
    source: what the weights are, see metric_files.fingerprint.
  """

  name: str
  prepare: Callable[[Image.Image], preprocessing.Square]
  apply: Callable[[Any, jax.Array], jax.Array]
  params: Any
  source: str = ''


class LoadedCLIP(NamedTuple):
  """A pair of encoders with its parameters.

  Attributes:
    name: of the pair.
    pair: of encoders.
    params: {'image': parameters, 'text': parameters}.
    source: see Extractor.
  """

  name: str
  pair: clip_image.CLIP
  params: dict[str, Any]
  source: str = ''


def load_inception(path: str | pathlib.Path | None = None) -> Extractor:
  """Loads what FID, KID, precision and recall see: Inception v3, 2,048 numbers.

  Args:
    path: see inception_weights.load_inception.
  """
  file = metric_files.find(metric_files.INCEPTION, path)
  params = inception_weights.load_inception(file)
  return make_inception(params, metric_files.fingerprint(file))


def make_inception(params: Any, source: str = '') -> Extractor:
  """Makes the extractor of Inception's features from its parameters."""
  resize = functools.partial(preprocessing.bilinear, size=inception.SIZE)
  return Extractor('inception', resize, apply_inception, params, source)


def apply_inception(
  params: Any, image: Float[jax.Array, 'b h w 3']
) -> Float[jax.Array, 'b d']:
  """Computes Inception's features of images in [0, 1] of its size."""
  return inception.Inception().apply({'params': params}, image)


def load_clip(name: str, path: str | pathlib.Path | None = None) -> LoadedCLIP:
  """Loads a pair of encoders; see clip_weights.load_clip."""
  clip_weights.check_name(name)
  file = metric_files.find(metric_files.CLIP[name], path)
  params = clip_weights.load_clip(name, file)
  source = metric_files.fingerprint(file)
  return LoadedCLIP(name, clip_image.PAIRS[name], params, source)


def make_clip(loaded: LoadedCLIP, crop: Callable) -> Extractor:
  """Makes the extractor of CLIP's image embeddings, of length 1.

  Args:
    loaded: with the parameters of the image encoder.
    crop: preprocessing.clip_crop, or cmmd_crop.
  """
  prepare = functools.partial(crop, size=loaded.pair.image.image_size)
  return Extractor(
    f'{loaded.name} {crop.__name__}',
    prepare,
    loaded.pair.embed_images,
    {'image': loaded.params['image']},
    loaded.source,
  )


def compute(
  extractor: Extractor,
  images: Sequence[Any],
  mesh: jax.sharding.Mesh | None = None,
  batch_size: int = 8,
) -> Features:
  """Computes float32 features [n, d] of images; see `compute_all`."""
  return compute_all({'': extractor}, images, mesh, batch_size)['']


def compute_all(
  extractors: Mapping[str, Extractor],
  images: Sequence[Any],
  mesh: jax.sharding.Mesh | None = None,
  batch_size: int = 8,
  what: str = 'images',
) -> dict[str, Features]:
  """Computes features of images; each image is opened once.

  Of several processes each opens its share.

  Args:
    extractors: {name: extractor}.
    images: paths, Pillow images, or uint8 [h, w, 3], of any sizes.
    mesh: whose devices share the rows of a batch, a copy of the parameters on
      each; None: all devices of this process.
    batch_size: on each device.
    what: the images are, for the progress.

  Returns:
    {name: float32 [n, d]} in every process, the same on any number of devices
    and processes but for rounding.

  Raises:
    images.UnreadableImage: for an image that is missing or broken.
    ValueError: without images, or for features that are not finite.
  """
  if not len(images):
    raise ValueError('there are no images to compute features of')
  mesh = mesh or device_mesh.make_mesh(devices=jax.local_devices())
  size = batch_size * device_mesh.row_devices(mesh)
  params = jax.device_put(
    {name: extractor.params for name, extractor in extractors.items()},
    sharding.replicated(mesh),
  )
  programs = {name: program(e.apply) for name, e in extractors.items()}
  found = {name: [] for name in extractors}
  own = [images[i] for i in multihost.share(len(images))]
  # A process without an image computes one, whose features are dropped.
  shared, own = len(own), own or [images[-1]]
  with progress_bar(len(own), what) as bar:
    for batch in batches(extractors, own, size):
      for name, rows in batch.items():
        # Padded with its last image to the compiled size.
        padding = rows[-1:].repeat(size - len(rows), 0)
        put = batch_padding.Rows(mesh, size)
        array = put.place(np.concatenate([rows, padding]))
        # The default of GPUs and TPUs is of fewer digits than the protocols'.
        with jax.default_matmul_precision('highest'):
          features = put.fetch(programs[name](params[name], array))
        found[name].append(np.asarray(features, np.float32)[: len(rows)])
      bar.update(len(rows))
  joined = {
    name: multihost.gather(np.concatenate(parts)[:shared], len(images))
    for name, parts in found.items()
  }
  check_finite(joined, images)
  return joined


def progress_bar(total: int, what: str) -> tqdm.tqdm:
  """Makes the bar of this process's images; only the primary one shows it."""
  is_hidden = not multihost.is_primary()
  return tqdm.tqdm(
    total=total, desc=what, unit='image', delay=2, disable=is_hidden
  )


@functools.lru_cache(maxsize=8)  # of a net, samples and reference have one
def program(apply: Callable[[Any, jax.Array], jax.Array]) -> Callable:
  """Compiles a net of pixels, which come as uint8 or as float32 in [0, 1]."""

  def from_pixels(params, pixels):
    if pixels.dtype == jnp.uint8:
      pixels = pixels.astype(jnp.float32) / 255
    return apply(params, pixels)

  return jax.jit(from_pixels)


def batches(
  extractors: Mapping[str, Extractor], images: Sequence[Any], size: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields {name: pixels of `size` images}, read ahead by threads."""

  def prepare(image):
    opened = image_folder.open_rgb(image)
    return {name: e.prepare(opened) for name, e in extractors.items()}

  threads = min(16, os.cpu_count() or 1)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    prepared = prefetching.prefetch(pool, prepare, images)
    while rows := list(itertools.islice(prepared, size)):
      yield {name: np.stack([row[name] for row in rows]) for name in extractors}


def check_finite(found: dict[str, Features], images: Sequence[Any]) -> None:
  """Raises ValueError for features with NaN or infinity."""
  for features in found.values():
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
      first = image_folder.describe(images[bad[0]], bad[0])
      raise ValueError(
        f'the features of {len(bad)} images are not finite, the first of '
        f'{first}: the weights of the metric are broken, download them again'
      )
