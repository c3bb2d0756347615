"""Precomputes moments and encoded text of a dataset, as shards for training.

  python -m sdxl_jax.precompute --config configs/stage3.py --output CACHE \
    --config.init_from=SDXL --config.data.folder.path=IMAGES

Then train with --config.data.source=precomputed
--config.data.precomputed.path=CACHE. To continue after an interruption, run the
same command again.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import cut_captions, dataset, images, precompute_writer
from sdxl_jax.data.sources import index, precomputed
from sdxl_jax.distributed import device_mesh, multihost, sharding
from sdxl_jax.models import from_config
from sdxl_jax.text import chunking, tokenizer
from sdxl_jax.training import config_diff, config_validation

# Fields of a config that decide what a cache holds.
NETS = ('vae', 'text_encoder', 'text_encoder_2')
CACHE_FIELDS = ('seed', 'refiner', 'init_from', *NETS)


def precompute(
  config: ml_collections.ConfigDict,
  output: str | os.PathLike,
  *,
  crops: int = 1,
  flips: bool = False,
  dtype: str = 'bfloat16',
  shard_size: int = 1024,
  batch_size: int = 8,
  say: Callable[[str], Any] = print,
) -> None:
  """Writes the moments and encoded text of a dataset.

  The format is that of data/sources/precomputed.py.

  Args:
    config: as for training.
    output: folder, the same one for all processes.
    crops: different crops of each image.
    flips: whether to add the mirror image of each crop.
    dtype: of moments and text in the shards, 'bfloat16' or 'float16'.
    shard_size: records in a file.
    batch_size: images, and captions, encoded at once on each device.
    say: takes a line for the user.

  Raises:
    ValueError: for an invalid config, or a folder that holds another cache;
      nothing in it is changed.
  """
  # The dataset and the model.
  config_validation.check(config)
  multihost.start(config.mesh.processes)
  config = loading.with_latent_scaling(config, config.init_from)
  source = dataset.make_source(config, say)
  # Each process computes shards of its own, on its own devices.
  mesh = device_mesh.make_mesh(devices=jax.local_devices())
  model = from_config.make_model(config, device_mesh.platform(mesh))
  # The folder, new or of an interrupted run.
  layout = make_layout(config, model, source, crops, flips, dtype)
  folder = open_cache_dir(output, layout)
  if index.read(folder / precomputed.INDEX, layout.identity):
    say(f'{folder} is finished')
    return
  (folder / precompute_writer.PARTS).mkdir(exist_ok=True)
  shards = list(
    precompute_writer.plan_shards(source, layout.buckets, shard_size)
  )
  # All shards, then what they have in common.
  encoder = Encoder(config, model, mesh, batch_size)
  write_shards(config, source, layout, folder, shards, encoder, say)
  multihost.barrier('all shards are written')
  if multihost.is_primary():
    finalize(folder, layout, shards, encoder, say)


def write_shards(config, source, layout, folder, shards, encoder, say):
  """Writes this process's share of the shards, but for those that exist."""
  mine = shards[jax.process_index() :: jax.process_count()]
  missing = [s for s in mine if s.read_part(folder, layout) is None]
  total, todo = count_records(mine), count_records(missing)
  bar = tqdm.tqdm(initial=total - todo, total=total, unit='image')
  started = time.monotonic()
  # Threads crop images while the devices encode.
  threads = config.data.num_threads or 1
  with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for shard in missing:
      make_crops = precompute_writer.CropMaker(
        source, shard.bucket, layout, config.seed, config.data.background
      )
      ids = shard.ids.tolist()
      examples = precompute_writer.prefetch(pool, make_crops, ids)
      precompute_writer.write_shard(
        shard, folder, layout, with_progress(examples, bar), encoder
      )
  if encoder.cut_captions.cut:
    say(encoder.cut_captions.describe())
  if missing and multihost.is_primary():
    rate = todo / (time.monotonic() - started)
    say(
      f'{todo:,} images at {rate:.1f} per second, in each of '
      f'{jax.process_count()} processes'
    )


def count_records(shards):
  return sum(len(shard.ids) for shard in shards)


def with_progress(examples, bar):
  """Yields examples, and advances a progress bar by each."""
  for example in examples:
    yield example
    bar.update()


def make_layout(config, model, source, crops, flips, dtype):
  """Describes a cache: its arrays, and all inputs that decide its content."""
  # Through JSON, as the layout of an interrupted run is read.
  config = json.loads(config.to_json())
  data = config['data']
  sizes = hashlib.sha256(np.ascontiguousarray(source.sizes)).hexdigest()
  facts = {name: config[name] for name in CACHE_FIELDS} | {
    'source': {data['source']: data[data['source']]},
    'filters': data['filters'],
    'background': data['background'],
    'records': len(source),
    'sizes': sizes,
  }
  return precomputed.Layout(
    buckets=tuple(map(tuple, data['buckets'])),
    crops=crops,
    flips=2 if flips else 1,
    dtype=dtype,
    downscale=model.vae.downscale,
    moments=2 * model.unet.in_channels,
    context=(
      chunking.count_for(config['max_token_length']) * chunking.LENGTH,
      model.unet.context_dim,
    ),
    pooled=model.text.text_encoder_2.projection_dim,
    facts=facts,
  )


def open_cache_dir(output, layout):
  """Makes the folder of a cache, or opens that of an interrupted run.

  Raises:
    ValueError: if the folder holds another cache, with the differences.
  """
  folder = pathlib.Path(output).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  saved = precomputed.Layout.load(folder)
  if saved and saved.identity != layout.identity:
    rows = config_diff.differences(as_json(saved), as_json(layout))
    listed = ''.join(f'\n  {field}: {row}' for field, row in rows.items())
    raise ValueError(
      f'{folder} holds another cache. Changed (saved > now):{listed}\nPass '
      'another --output, or remove the folder'
    )
  multihost.barrier('every process has read the old layout')
  if multihost.is_primary():
    layout.save(folder)
  return folder


def as_json(layout):
  """Converts a layout to a dict with lists in place of tuples."""
  return json.loads(json.dumps(dataclasses.asdict(layout)))


class Encoder:
  """Encodes images to moments and captions to text, in batches of one shape.

  The weights are those of config.init_from. With several devices, each has
  `batch_size` rows of a batch.
  """

  def __init__(self, config, model, mesh, batch_size):
    names = [name for name in model.configs if name != 'unet']
    self.params = loading.load_params(config.init_from, model, names, mesh)
    self.tokenize = tokenizer.load(loading.base_weights(config.init_from))
    self.text_chunks = chunking.count_for(config.max_token_length)
    self.cut_captions = cut_captions.CutCaptions(config.max_token_length)
    self.batch_size = batch_size * mesh.size
    self.sharding = sharding.batch_sharding(mesh)
    self.encode_images = jax.jit(model.encode)
    self.encode_tokens = model.text.encode

  def moments(self, crops):
    """Yields float32 [h/8, w/8, 8] of each uint8 [h, w, 3]."""
    return self.batched(self.encode_images, map(images.to_float, crops))

  def text(self, captions):
    """Yields context [77 k, 2048] and pooled [1280] of each caption."""
    tokens = []
    if captions:
      tokens, cut = self.tokenize.captions(captions, self.text_chunks)
      self.cut_captions.add(cut)
    return self.batched(self.encode_tokens, iter(np.asarray(tokens, np.int32)))

  def batched(self, encode, rows):
    """Yields the result of each row; the next batch runs during the transfer.

    Args:
      encode: (params, batch) -> tree of arrays.
      rows: of one shape; the last batch is padded with copies of its last row.
    """
    pending = None
    while batch := list(itertools.islice(rows, self.batch_size)):
      padded = np.stack(batch + batch[-1:] * (self.batch_size - len(batch)))
      result = encode(self.params, jax.device_put(padded, self.sharding))
      if pending:
        yield from fetch_rows(*pending)
      pending = result, len(batch)
    if pending:
      yield from fetch_rows(*pending)


def fetch_rows(result, count):
  """Yields the first rows of a batch from the devices, one by one."""
  arrays, tree = jax.tree.flatten(result)
  for row in zip(*(np.asarray(array)[:count] for array in arrays)):
    yield tree.unflatten(row)


def finalize(folder, layout, shards, encoder, say):
  """Writes the encoded empty caption, the checksums, and last the index."""
  uncond = folder / precomputed.UNCOND
  (context, pooled), *_ = encoder.text([''])
  row = precomputed.pack(layout.text, {'context': context, 'pooled': pooled})
  precomputed.write_rows(uncond, [row])
  left_out = ''.join(
    shard.part(folder).with_suffix('.txt').read_text() for shard in shards
  )
  (folder / 'left_out.txt').write_text(left_out)
  # Files that a killed process was writing.
  for partial in folder.glob('*.partial'):
    partial.unlink()
  paths = [shard.path(folder) for shard in shards] + [uncond]
  sums = ''.join(f'{precomputed.digest(p)}  {p.name}\n' for p in paths)
  (folder / precomputed.SUMS).write_text(sums)
  # The index completes the cache.
  table = index.join([shard.read_part(folder, layout) for shard in shards])
  index.write(folder / precomputed.INDEX, layout.identity, table)
  shutil.rmtree(folder / precompute_writer.PARTS)
  size = sum(path.stat().st_size for path in paths)
  count = left_out.count('\n')
  say(
    f'{len(table):,} records in {len(shards)} shards, {size / 1e9:.3g} GB, '
    f'{size / len(table) / 1e3:.0f} kB each; {count} left out'
  )


def main(args):
  precompute(
    args.config,
    args.output,
    crops=args.crops,
    flips=args.flips,
    dtype=args.dtype,
    shard_size=args.shard_size,
    batch_size=args.batch_size,
  )


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'file with get_config()')
  flags.DEFINE_string('output', None, 'folder of the cache')
  flags.DEFINE_integer('crops', 1, 'different crops of each image', 1)
  flags.DEFINE_bool('flips', False, 'add the mirror image of each crop')
  flags.DEFINE_enum(
    'dtype', 'bfloat16', ['bfloat16', 'float16'], 'of moments and text'
  )
  flags.DEFINE_integer('shard_size', 1024, 'records in a file', 1)
  flags.DEFINE_integer(
    'batch_size', 8, 'images, and captions, encoded at once per device', 1
  )
  flags.mark_flags_as_required(['config', 'output'])


if __name__ == '__main__':
  define_flags()
  cli.run(main)
