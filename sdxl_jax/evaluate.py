"""Evaluate: how near an autoencoder's reconstructions come to the pictures.

  python -m sdxl_jax.evaluate --config configs/stage0.py --weights DIR \
    --output OUT --config.data.folder.path=PICTURES

DIR is published weights, or a workdir, of which --average chooses parameters.
Prints PSNR, SSIM and LPIPS at the size of the config's bucket, 256 px as in
Table 3 of the SDXL paper, and what would give the latents unit variance; writes
OUT/metrics.json and OUT/reconstructions.png.

LPIPS is the calibrated distance of the package `lpips`, by which SDXL's
autoencoder is known to have about 0.055 on COCO at 256 px. The paper's 0.88 is
of another scale, which it does not name: without the calibrated weights, the
same features give 10 to 12 times ours.
"""

import collections
import concurrent.futures
import functools
import itertools
import json
import pathlib

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading, run_params
from sdxl_jax.data import (
  buckets,
  dataset,
  images,
  precompute_writer,
  seeds,
  transforms,
)
from sdxl_jax.distributed import device_mesh, sharding
from sdxl_jax.evaluation import reconstruction
from sdxl_jax.models import from_config
from sdxl_jax.training import config_validation

SHOWN = 12  # pictures in the grid


def evaluate(
  config,
  weights,
  output,
  pictures=5000,
  batch_size=8,
  average='ema',
  say=print,
):
  """Measures an autoencoder on the first pictures of a source, one crop each.

  Args:
    config: as for training stage 0; its `vae` must be that of the weights.
    weights: published ones, workdir or checkpoint.
    output: folder to write to.
    pictures: at most so many.
    batch_size: on each device.
    average: which parameters of a workdir, see pipelines.load.
    say: takes a line for the user.

  Returns:
    {metric: [mean, standard deviation over pictures]} and of the latents
    {'scaling_factor': float, 'latents_mean': [by channel]}.

  Raises:
    ValueError: for a config of another task, or if no picture can be read.
  """
  config_validation.check(config)
  if config.task != 'autoencoder':
    raise ValueError(
      f"config.task is {config.task!r}; only an 'autoencoder' is measured so "
      'far: give configs/stage0.py'
    )
  config = loading.with_latent_scaling(config, weights)
  output = pathlib.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  source = dataset.make_source(config, say)
  mesh = device_mesh.make_mesh(devices=jax.local_devices())
  nets = from_config.make_model(config, device_mesh.platform(mesh))
  params = load(config, nets, weights, mesh, average, say)
  measure = jax.jit(functools.partial(reconstruction.measure, nets))
  size, rows = batch_size * mesh.size, sharding.batch_sharding(mesh)
  found, cells = collections.defaultdict(list), []
  bar = tqdm.tqdm(total=min(pictures, len(source)), unit='image')
  for batch in read(config, source, pictures, size, say):
    whole = np.concatenate([batch, batch[-1:].repeat(size - len(batch), 0)])
    values, made = measure(params, jax.device_put(whole, rows))
    for name, value in values.items():
      found[name] += list(np.asarray(value)[: len(batch)])
    if len(cells) < 3 * SHOWN:
      cells += reconstruction.comparison(batch, np.asarray(made))
    bar.update(len(batch))
  bar.close()
  if not cells:
    raise ValueError(f'none of {len(source)} pictures can be read')
  images.save(
    output / 'reconstructions.png', images.grid(cells[: 3 * SHOWN], 6)
  )
  metrics = reconstruction.summary(found)
  (output / 'metrics.json').write_text(json.dumps(metrics, indent=2) + '\n')
  say(describe(metrics, len(found['psnr'])))
  return metrics


def load(config, nets, weights, mesh, average, say):
  """{'vae': params}, and LPIPS where the config asks for it."""
  params = loading.load_params(weights, nets, ['vae'], mesh, average)
  if 'lpips' not in nets.configs:
    say('without LPIPS, since config.autoencoder.perceptual_weight is 0')
    return params
  return params | {'lpips': loading.load_lpips(config, nets, mesh)}


def read(config, source, count, size, say):
  """Batches float32 [<= size, h, w, 3], each of one bucket."""
  table = tuple(map(tuple, config.data.buckets))
  assigned = buckets.assign(source.sizes[:count], table)

  def crop(bucket, i):
    seed = [config.seed, seeds.Stream.EVALUATION_CROP, int(i)]
    background = config.data.background
    try:
      example = source[int(i)]
      row = transforms.transform(example, bucket, seed, background=background)
      return row['image']
    except images.UnreadableImage as error:
      return error

  def readable(crops):
    for made in crops:
      if isinstance(made, images.UnreadableImage):
        say(f'left out: {made}')
      else:
        yield made

  threads = config.data.num_threads or 1
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for b, bucket in enumerate(table):
      make = functools.partial(crop, bucket)
      crops = precompute_writer.prefetch(
        pool, make, np.flatnonzero(assigned == b)
      )
      crops = readable(crops)
      while batch := list(itertools.islice(crops, size)):
        yield np.stack(batch)


def describe(metrics, count):
  """The metrics as text."""
  spread = lambda name: '{:.4g} +- {:.2g}'.format(*metrics[name])
  measured = ', '.join(
    f'{name} {spread(name)}' for name in reconstruction.NAMES if name in metrics
  )
  mean = ', '.join(f'{x:.3g}' for x in metrics['latents_mean'])
  return (
    f'{count:,} pictures: {measured}\nlatents have unit variance with '
    f'scaling_factor {metrics["scaling_factor"]:.5g}, and zero mean with '
    f'latents_mean ({mean})'
  )


def main(args):
  evaluate(
    *(args.config, args.weights, args.output),
    *(args.pictures, args.batch_size, args.average),
  )


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.DEFINE_string('weights', None, 'published ones, or a workdir')
  flags.DEFINE_string('output', None, 'folder to write to')
  flags.DEFINE_integer('pictures', 5000, 'to measure, at most', 1)
  flags.DEFINE_integer('batch_size', 8, 'pictures at once, per device', 1)
  flags.DEFINE_string('average', 'ema', run_params.HELP)
  flags.mark_flags_as_required(['config', 'weights', 'output'])
  cli.run(main)
