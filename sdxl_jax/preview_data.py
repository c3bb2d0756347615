"""Previews the images of the first training steps, and how buckets are filled.

  python -m sdxl_jax.preview_data --config configs/stage3.py --output PREVIEW \
    --config.data.folder.path=IMAGES

Writes PREVIEW/batches.png, the crops of the first steps with their captions and
sizes (of large batches the first 64), and PREVIEW/buckets.png; prints how many
records are used and left out, and a table of the buckets. Where
config.data.captions changes captions, PREVIEW/captions.txt has those of the
first records as the data and as the first passes have them.

With --check it reads and decodes every record instead, counts what is odd, and
lists in PREVIEW what cannot be read (unreadable.txt), captions that are cut
(cut_captions.txt) and images that are there twice (same_images.txt). It ends
with 1 if records cannot be read, otherwise with 0.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading, run_sources, source_configs
from sdxl_jax.data import (
  buckets,
  captioning,
  dataset,
  figures,
  images,
  pipeline,
  record_check,
)
from sdxl_jax.data.sources import indexed
from sdxl_jax.models import from_config, latent_scaling
from sdxl_jax.text import tokenizer
from sdxl_jax.training import (
  config_validation,
  run_setup,
  tasks,
  validation_share,
)

MAX_SIDE = 256  # px, of an image in the grid
MAX_ROWS = 64  # of a batch in the grid
CAPTIONS = 'captions.txt'
PASSES = 4  # whose captions are shown
MAX_SHOWN = 3  # records whose captions are printed


def preview(
  config: ml_collections.ConfigDict,
  output: str | os.PathLike,
  steps: int = 4,
  say: Callable[[str], Any] = print,
) -> None:
  """Writes the images of the first steps and a chart of buckets.

  Args:
    config: as for training.
    output: folder for the images.
    steps: number of steps, of each batch at most MAX_ROWS.
    say: takes a line for the user.
  """
  # How full the buckets are.
  output = pathlib.Path(output)
  source = open_source(config, output, say)
  table = occupancy(source.sizes, config.data.buckets)
  say(as_text(table))
  chart = [(row['bucket'], row['images']) for row in table]
  images.save(output / 'buckets.png', figures.bars(chart))
  # The batches of the first steps.
  tokenize = run_setup.load_tokenizer(config)
  micro_batches = tasks.micro_batches_of(config)
  rows = range(min(config.global_batch_size // micro_batches, MAX_ROWS))
  batches = dataset.make_batches(config, source, tokenize, rows)
  decode = make_decode(config)
  shown, captions = [], []
  for _ in range(steps * micro_batches):
    _, batch = next(batches)
    shown += [shrink(image) for image in decode(batch)]
    captions += describe(batch, tokenize)
  ids = batches.record_ids(0)[: len(rows)].tolist()
  show_captions(config, source, ids, output, say)
  batches.close()
  columns = min(8, len(rows))
  images.save(output / 'batches.png', figures.grid(shown, columns, captions))
  say(f'{len(shown)} images as training takes them: {output}/batches.png')


def check(
  config: ml_collections.ConfigDict,
  output: str | os.PathLike,
  say: Callable[[str], Any] = print,
) -> record_check.Report:
  """Reads and decodes every record, and reports what is odd.

  Args:
    config: as for training.
    output: folder for the lists of records.
    say: takes a line for the user.
  """
  # Those that training holds out as well.
  config = validation_share.with_share(config, 0.0)
  source = open_source(config, pathlib.Path(output), say)
  tokenize = run_setup.load_tokenizer(config)
  report = dataset.check_records(config, source, tokenize)
  report.save(output)
  say(f'{report}\nThe lists are in {output}')
  return report


def open_source(
  config: ml_collections.ConfigDict,
  output: pathlib.Path,
  say: Callable[[str], Any],
) -> Any:
  """Makes the source of a config, and writes its account into a folder."""
  config_validation.check(config)
  output.mkdir(parents=True, exist_ok=True)
  return run_setup.make_source(config, output, say)


def occupancy(
  sizes: np.ndarray, table: Sequence[buckets.Size]
) -> list[dict[str, Any]]:
  """Measures how each bucket is filled, the fullest first.

  Args:
    sizes: int [n, 2], (height, width) of the records in px.
    table: the buckets, (height, width).

  Returns:
    Of each bucket its name, its images, their share of all, the share that is
    enlarged, and the mean share of the area that is cut off.
  """
  assigned, rows = buckets.assign(sizes, table), []
  for b, (h, w) in enumerate(table):
    # As in transforms: scaled to cover the bucket, then cropped.
    inside = np.asarray(sizes[assigned == b], float)
    scale = np.max([h, w] / inside, axis=1)
    visible = h * w / np.prod(inside * scale[:, None], axis=1)
    rows.append(
      {
        'bucket': f'{h}x{w}',
        'images': len(inside),
        'share': len(inside) / len(sizes),
        'enlarged': float((scale > 1).mean()) if len(inside) else 0.0,
        'cut off': float(1 - visible.mean()) if len(inside) else 0.0,
      }
    )
  return sorted(rows, key=lambda row: -row['images'])


def as_text(rows: Sequence[dict[str, Any]]) -> str:
  """Formats a table with a line for each bucket."""
  lines = ['    bucket      images   share  enlarged   cut off']
  lines += [
    f'{row["bucket"]:>10}  {row["images"]:>10,}  {row["share"]:6.1%}'
    f'  {row["enlarged"]:8.1%}  {row["cut off"]:8.1%}'
    for row in rows
  ]
  return '\n'.join(lines)


def describe(batch: pipeline.Batch, tokenize: tokenizer.Tokenizer) -> list[str]:
  """Formats caption and sizes of each row of a batch, in two lines."""
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


def show_captions(
  config: ml_collections.ConfigDict,
  source: Any,
  ids: Sequence[int],
  output: pathlib.Path,
  say: Callable[[str], Any],
) -> None:
  """Writes what captions become, pass by pass, if they become others.

  Args:
    config: as for training.
    source: of the records.
    ids: of records.
    output: folder for captions.txt.
    say: takes a line for the user.
  """
  captions = dataset.make_captioning(config)
  if not captions.has_effect:
    return
  blocks = []
  for i in dict.fromkeys(ids):
    lines = [indexed.printable(source.name(i))]
    try:
      example = source[i]
      lines += [f'  data: {c!r}' for c in captioning.captions_of(example)]
      fields = captions.of(example)
      for data_pass in range(PASSES):
        text = fields.choose(example, config.seed, data_pass, i)['caption']
        shown = '(none)' if fields.is_dropped(data_pass) else repr(text)
        lines.append(f'  pass {data_pass}: {shown}')
    except images.UnreadableImage as error:
      lines.append(f'  {error}')
    blocks.append('\n'.join(lines))
  text = '\n'.join(blocks) + '\n'
  (output / CAPTIONS).write_text(text, encoding='utf-8')
  first = '\n'.join(blocks[:MAX_SHOWN])
  say(f'{first}\nMore captions of the first passes: {output}/{CAPTIONS}')


def shrink(image: np.ndarray) -> np.ndarray:
  """Resizes an image to sides of at most MAX_SIDE, as uint8."""
  image = images.to_uint8(image)
  h, w = image.shape[:2]
  factor = min(1, MAX_SIDE / max(h, w))
  size = round(h * factor), round(w * factor)
  return np.asarray(images.resize(Image.fromarray(image), size))


def make_decode(
  config: ml_collections.ConfigDict,
) -> Callable[[pipeline.Batch], np.ndarray]:
  """Makes decode(batch) -> images; moments are decoded by the autoencoder."""
  if not config_validation.is_precomputed(config):
    return lambda batch: batch['image']
  vae_source = run_sources.vae_source(config)
  config = source_configs.with_latent_scaling(config, vae_source)
  model = from_config.make_model(config)
  # A PatchVAE has no parameters.
  names = [name for name in ('vae',) if name in model.configs]
  params = loading.load_start(config, model, names)

  def decode(batch):
    mean = np.split(np.asarray(batch['moments'], np.float32), 2, -1)[0]
    latents = latent_scaling.scale(model.vae, mean)
    return np.asarray(model.decode(params, latents))

  return decode


def main(args):
  if not args.check:
    preview(args.config, args.output, args.steps)
    return
  report = check(args.config, args.output)
  if report.unreadable:
    raise ValueError(
      f'{len(report.unreadable):,} of {report.records:,} records cannot be '
      f'read, see {args.output}/{record_check.UNREADABLE}: repair or remove '
      'them, or training takes others in their place'
    )


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'file with get_config()')
  flags.DEFINE_string('output', None, 'folder for the images')
  flags.DEFINE_bool('check', False, 'read every record instead, and report')
  flags.DEFINE_integer('steps', 4, 'number of steps to show', 1)
  flags.mark_flags_as_required(['config', 'output'])


if __name__ == '__main__':
  define_flags()
  cli.run(main)
