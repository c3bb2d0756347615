"""Show: what a training step would really see, and how the buckets are filled.

  python -m sdxl_jax.preview_data --config configs/stage3.py --output SEEN \
    --config.data.folder.path=PICTURES

Writes SEEN/batches.png, the crops of the first steps with their captions and
sizes (of large batches the first 64), and SEEN/buckets.png; prints a table of
the buckets.
"""

import pathlib

import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import buckets, dataset, images
from sdxl_jax.models import from_config, latent_scaling
from sdxl_jax.text import tokenizer
from sdxl_jax.training import config_validation, tasks

SIDE = 256  # px, of a picture that is shown
ROWS = 64  # of a batch, at most, that are shown


def show(config, output, steps=4, say=print):
  """Draws the batches of the first steps; trains nothing.

  Args:
    config: as for training.
    output: folder for the pictures.
    steps: whose batches are drawn, of each at most ROWS.
    say: takes a line for the user.
  """
  config_validation.check(config)
  source = dataset.make_source(config, say)
  table = occupancy(source.sizes, config.data.buckets)
  say(as_text(table))
  output = pathlib.Path(output)
  chart = [(row['bucket'], row['pictures']) for row in table]
  images.save(output / 'buckets.png', images.bars(chart))
  tokenize = tokenizer.load(loading.base_weights(config.init_from))
  batch_size = config.global_batch_size // tasks.micro_batches_of(config)
  rows = range(min(batch_size, ROWS))
  batches = dataset.make_batches(config, source, tokenize, rows)
  decode = make_decode(config)
  pictures, captions = [], []
  for _ in range(steps * tasks.micro_batches_of(config)):
    _, batch = next(batches)
    pictures += [shrink(image) for image in decode(batch)]
    captions += describe(batch, tokenize)
  batches.close()
  columns = min(8, len(rows))
  images.save(output / 'batches.png', images.grid(pictures, columns, captions))
  say(f'{len(pictures)} pictures as training sees them: {output}/batches.png')


def occupancy(sizes, table):
  """Of each bucket a dict of figures, the fullest first.

  Args:
    sizes: int [n, 2], (height, width) of the records in px.
    table: the buckets, (height, width).
  """
  assigned, rows = buckets.assign(sizes, table), []
  for b, (h, w) in enumerate(table):
    inside = np.asarray(sizes[assigned == b], float)
    scale = np.max([h, w] / inside, axis=1)
    shown = h * w / np.prod(inside * scale[:, None], axis=1)
    rows.append(
      {
        'bucket': f'{h}x{w}',
        'pictures': len(inside),
        'share': len(inside) / len(sizes),
        'enlarged': float((scale > 1).mean()) if len(inside) else 0.0,
        'cut off': float(1 - shown.mean()) if len(inside) else 0.0,
      }
    )
  return sorted(rows, key=lambda row: -row['pictures'])


def as_text(rows):
  """A table with a line for each bucket."""
  lines = ['    bucket    pictures   share  enlarged   cut off']
  lines += [
    f'{row["bucket"]:>10}  {row["pictures"]:>10,}  {row["share"]:6.1%}'
    f'  {row["enlarged"]:8.1%}  {row["cut off"]:8.1%}'
    for row in rows
  ]
  return '\n'.join(lines)


def describe(batch, tokenize):
  """Caption and the three sizes of each row of a batch, in two lines."""
  names = ('original_size', 'crop_top_left', 'target_size')
  sizes = zip(*(batch[name].tolist() for name in names))
  if 'tokens' in batch:
    texts = tokenize.decode(batch['tokens'])
  else:
    texts = ['(encoded text)'] * len(batch['target_size'])
  return [
    f'{text}\n{h}x{w}, from {top},{left}: {bucket_h}x{bucket_w}'
    for text, ((h, w), (top, left), (bucket_h, bucket_w)) in zip(texts, sizes)
  ]


def shrink(image):
  """A picture no larger than is shown."""
  image = images.to_uint8(image)
  h, w = image.shape[:2]
  factor = min(1, SIDE / max(h, w))
  size = round(h * factor), round(w * factor)
  return np.asarray(images.resize(Image.fromarray(image), size))


def make_decode(config):
  """batch -> images; moments are decoded by the autoencoder."""
  if not config_validation.is_precomputed(config):
    return lambda batch: batch['image']
  config = loading.with_latent_scaling(config, config.init_from)
  nets = from_config.make_model(config)
  params = loading.load_params(
    config.init_from, nets, [n for n in ('vae',) if n in nets.configs]
  )

  def decode(batch):
    mean = np.split(np.asarray(batch['moments'], np.float32), 2, -1)[0]
    return np.asarray(nets.decode(params, latent_scaling.scale(nets.vae, mean)))

  return decode


def main(args):
  show(args.config, args.output, args.steps)


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.DEFINE_string('output', None, 'folder for the pictures')
  flags.DEFINE_integer('steps', 4, 'whose batches are drawn', 1)
  flags.mark_flags_as_required(['config', 'output'])
  cli.run(main)
