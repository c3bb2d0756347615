"""Measures how well an autoencoder reconstructs images.

LPIPS is the calibrated distance of the package `lpips`, for which about 0.055
on COCO at 256 px is known of SDXL's autoencoder. The paper's 0.88 is on another
scale, which it does not name: without the calibrated weights, the same features
give 10 to 12 times our numbers.
"""

import collections
import concurrent.futures
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jaxtyping import Float
from ml_collections import config_dict

from sdxl_jax.checkpoints import loading, run_sources
from sdxl_jax.data import (
  buckets,
  figures,
  images,
  prefetching,
  seeds,
  transforms,
)
from sdxl_jax.distributed import sharding
from sdxl_jax.evaluation import reconstruction
from sdxl_jax.sampling import finiteness
from sdxl_jax.training import config_validation, run_setup

IMAGES, COLUMNS = 12, 6  # of the grid; each image takes three columns


def evaluate(
  config: config_dict.ConfigDict,
  weights: str | pathlib.Path,
  output: str | pathlib.Path,
  num_images: int = 5000,
  batch_size: int = 8,
  average: str = 'ema',
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Measures an autoencoder on the first images of a source, one crop each.

  Args:
    config: as for training stage 0; its `vae` must be that of the weights.
    weights: published weights, a workdir or a checkpoint.
    output: folder to write to.
    num_images: number of images, at most.
    batch_size: on each device.
    average: which parameters of a workdir, see pipelines.load.
    say: prints a line for the user.

  Returns:
    {metric: [mean, standard deviation over images]} and of the latents
    {'scaling_factor': float, 'latents_mean': [by channel]}.

  Raises:
    ValueError: for a config of another task, or if no image can be read.
  """
  # Refuse other tasks before anything is read or written.
  config_validation.check(config)
  if config.task != 'autoencoder':
    raise ValueError(
      f"config.task is {config.task!r}; only an 'autoencoder' reconstructs "
      'images: pass configs/stage0.py, or --validation for the loss of records '
      'held out'
    )

  # Measure, with data and model on this process's devices.
  output = pathlib.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  setup = run_setup.set_up_locally(config, weights, say)
  params = load_params(setup, weights, average, say)
  values, cells = measure_images(setup, params, num_images, batch_size, say)
  if not cells:
    raise ValueError(f'none of {len(setup.source)} images can be read')

  # Write the figures and the first images.
  grid = figures.grid(cells, COLUMNS)
  images.save(output / 'reconstructions.png', grid)
  metrics = reconstruction.summary(values)
  (output / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
  say(describe(metrics, len(values['psnr'])))
  return metrics


def load_params(
  setup: run_setup.LocalSetup,
  weights: str | pathlib.Path,
  average: str,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Loads {'vae': params}, and LPIPS if the config has a weight for it."""
  config, model, mesh = setup.config, setup.model, setup.mesh
  params = loading.load_params(
    weights,
    model,
    ['vae'],
    mesh,
    average,
    options=run_sources.reading(config),
  )
  if 'lpips' not in model.configs:
    say('without LPIPS, since config.autoencoder.perceptual_weight is 0')
    return params
  return params | {'lpips': loading.load_lpips(config, model, mesh)}


def measure_images(
  setup: run_setup.LocalSetup,
  params: dict[str, Any],
  num_images: int,
  batch_size: int,
  say: Callable[[str], None],
) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
  """Measures the first images of a source.

  Returns:
    {name: [value of each image]}, as reconstruction.measure names them, and
    the cells of a grid of the first images.

  Raises:
    finiteness.NonFiniteError: for reconstructions with NaN or infinity.
  """
  # One program for all batches; the devices share the rows.
  measure = jax.jit(functools.partial(reconstruction.measure, setup.model))
  size = batch_size * setup.mesh.size
  rows = sharding.batch_sharding(setup.mesh)
  values, cells = collections.defaultdict(list), []
  total = min(num_images, len(setup.source))
  with tqdm.tqdm(total=total, unit='image') as bar:
    for batch in read_crops(setup.config, setup.source, num_images, size, say):
      # The last batch is padded with its last image to the compiled size.
      padding = batch[-1:].repeat(size - len(batch), 0)
      padded = jax.device_put(np.concatenate([batch, padding]), rows)
      measured, reconstructed = measure(params, padded)
      measured = {n: np.asarray(x)[: len(batch)] for n, x in measured.items()}
      check_measured(measured)
      for name, value in measured.items():
        values[name] += list(value)
      if len(cells) < 3 * IMAGES:
        cells += reconstruction.comparison(batch, np.asarray(reconstructed))
      bar.update(len(batch))
  return values, cells[: 3 * IMAGES]


def check_measured(measured: dict[str, np.ndarray]) -> None:
  """Raises finiteness.NonFiniteError where no mean of the metrics is right.

  Left out of the means, such images would make them better than they are.

  Args:
    measured: as reconstruction.measure returns it.
  """
  # The PSNR of an image without any error is infinite.
  psnr = np.where(np.isposinf(measured['psnr']), 0, measured['psnr'])
  finiteness.check_reconstructions([*(measured | {'psnr': psnr}).values()])


def read_crops(
  config: config_dict.ConfigDict,
  source: Any,
  num_images: int,
  size: int,
  say: Callable[[str], None],
) -> Iterator[Float[np.ndarray, 'b h w 3']]:
  """Yields batches of at most `size` crops in [-1, 1], each of one bucket.

  Images that cannot be read are left out, with a line for the user.
  """
  table = tuple(map(tuple, config.data.buckets))
  assigned = buckets.assign(source.sizes[:num_images], table)

  def crop(bucket, i):
    seed = [config.seed, seeds.Stream.EVALUATION_CROP, int(i)]
    try:
      with images.unreadable_if_raised(lambda: source.name(int(i))):
        row = transforms.transform(
          source[int(i)],
          bucket,
          seed,
          background=config.data.background,
        )
        return row['image']
    # Returned, not raised: one unreadable image does not end the evaluation.
    except images.UnreadableImage as error:
      return error

  def readable(crops):
    for result in crops:
      if isinstance(result, images.UnreadableImage):
        say(f'left out: {result}')
      else:
        yield result

  # Bucket by bucket, read ahead by threads.
  threads = config.data.num_threads or 1
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for number, bucket in enumerate(table):
      crops = readable(
        prefetching.prefetch(
          pool,
          functools.partial(crop, bucket),
          np.flatnonzero(assigned == number),
        )
      )
      while batch := list(itertools.islice(crops, size)):
        yield np.stack(batch)


def describe(metrics: dict[str, Any], count: int) -> str:
  """Formats the metrics of so many images."""
  measured = []
  for name in reconstruction.NAMES:
    if name in metrics:
      mean, deviation = metrics[name]
      measured.append(f'{name} {mean:.4g} +- {deviation:.2g}')
  latents_mean = ', '.join(f'{x:.3g}' for x in metrics['latents_mean'])
  return (
    f'{count:,} images: {", ".join(measured)}\nlatents have unit variance with '
    f'scaling_factor {metrics["scaling_factor"]:.5g}, and zero mean with '
    f'latents_mean ({latents_mean})'
  )
