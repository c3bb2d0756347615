"""Precompute: examples > moments and encoded text > shards for training.

  python -m sdxl_jax.precompute --config configs/stage3.py --output CACHE \
    --config.init_from=SDXL --config.data.folder.path=PICTURES

Then train with --config.data.source=precomputed
--config.data.precomputed.path=CACHE. Stopped? Run the same command again.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import shutil
import time

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.checkpoints import loading
from sdxl_jax.data import dataset, images, precompute_writer
from sdxl_jax.data.sources import index, precomputed
from sdxl_jax.distributed import device_mesh, multihost, sharding
from sdxl_jax.models import from_config
from sdxl_jax.text import tokenizer
from sdxl_jax.training import config_diff, config_validation

# What of a config decides what a cache holds.
FACTS = (
  *('seed', 'refiner', 'init_from', 'vae', 'text_encoder', 'text_encoder_2'),
)


def precompute(
  config,
  output,
  *,
  crops=1,
  flips=False,
  dtype='bfloat16',
  shard_size=1024,
  batch_size=8,
  say=print,
):
  """Writes the moments and encoded text of a dataset.

  The format is that of data/sources/precomputed.py.

  Args:
    config: as for training.
    output: folder, the same one for all processes.
    crops: different ones of each picture.
    flips: whether to add the mirrored picture of each crop.
    dtype: of what is stored, 'bfloat16' or 'float16'.
    shard_size: records in a file.
    batch_size: pictures, and captions, encoded at once on each device.
    say: takes a line for the user.

  Raises:
    ValueError: for a config that does not fit, or a folder that holds another
      cache; nothing in it is changed.
  """
  config_validation.check(config)
  multihost.start(config.mesh.processes)
  config = loading.with_latent_scaling(config, config.init_from)
  source = dataset.make_source(config, say)
  # Each process computes shards of its own, on its own devices.
  mesh = device_mesh.make_mesh(devices=jax.local_devices())
  nets = from_config.make_model(config, device_mesh.platform(mesh))
  layout = make_layout(config, nets, source, crops, flips, dtype)
  folder = claim(output, layout)
  if index.read(folder / precomputed.INDEX, layout.identity):
    say(f'{folder} is finished')
    return
  (folder / precompute_writer.PARTS).mkdir(exist_ok=True)
  every = list(
    precompute_writer.plan_shards(source, layout.buckets, shard_size)
  )
  encoder = Encoder(config, nets, mesh, batch_size)
  write_shards(config, source, layout, folder, every, encoder, say)
  multihost.barrier('all shards are written')
  if multihost.is_primary():
    finish(folder, layout, every, encoder, say)


def write_shards(config, source, layout, folder, every, encoder, say):
  """This process's share of the shards, but for those that are there."""
  mine = every[jax.process_index() :: jax.process_count()]
  todo = [shard for shard in mine if shard.read(folder, layout) is None]
  count = lambda some: sum(len(shard.ids) for shard in some)
  bar = tqdm.tqdm(
    initial=count(mine) - count(todo), total=count(mine), unit='image'
  )
  started = time.monotonic()
  threads, background = config.data.num_threads or 1, config.data.background
  with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for shard in todo:
      make = functools.partial(
        *(precompute_writer.make_variants, source, shard, layout),
        *(config.seed, background),
      )
      examples = counted(precompute_writer.prefetch(pool, make, shard.ids), bar)
      precompute_writer.write_shard(shard, folder, layout, examples, encoder)
  if todo and multihost.is_primary():
    rate = count(todo) / (time.monotonic() - started)
    say(
      f'{count(todo):,} pictures at {rate:.1f} per second, in each of '
      f'{jax.process_count()} processes'
    )


def counted(examples, bar):
  for example in examples:
    yield example
    bar.update()


def make_layout(config, nets, source, crops, flips, dtype):
  """What the cache of these will hold."""
  config = json.loads(config.to_json())
  sizes = hashlib.sha256(np.ascontiguousarray(source.sizes)).hexdigest()
  data = config['data']
  facts = {name: config[name] for name in FACTS} | {
    'source': {data['source']: data[data['source']]},
    'filters': data['filters'],
    'background': data['background'],
    'records': len(source),
    'sizes': sizes,
  }
  return precomputed.Layout(
    buckets=tuple(map(tuple, data['buckets'])),
    crops=crops,
    flips=1 + flips,
    dtype=dtype,
    downscale=nets.vae.downscale,
    moments=2 * nets.unet.in_channels,
    context=(
      nets.text.text_encoder_2.max_position_embeddings,
      nets.unet.context_dim,
    ),
    pooled=nets.text.text_encoder_2.projection_dim,
    facts=facts,
  )


def claim(output, layout):
  """The folder, made for this cache or begun for it."""
  folder = pathlib.Path(output).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  there = precomputed.Layout.load(folder)
  if there and there.identity != layout.identity:
    as_dict = lambda x: json.loads(json.dumps(dataclasses.asdict(x)))
    rows = config_diff.differences(as_dict(there), as_dict(layout))
    listed = ''.join(f'\n  {field}: {row}' for field, row in rows.items())
    raise ValueError(
      f'{folder} holds another cache. Changed (there > here):{listed}\nGive '
      'another --output, or remove the folder'
    )
  multihost.barrier('every process has read the old layout')
  if multihost.is_primary():
    layout.save(folder)
  return folder


class Encoder:
  """Pictures to moments and captions to text, in batches of one shape.

  Of several devices each takes its rows of a batch.
  """

  def __init__(self, config, nets, mesh, batch_size):
    names = [name for name in nets.configs if name != 'unet']
    self.params = loading.load_params(config.init_from, nets, names, mesh)
    self.tokenize = tokenizer.load(loading.base_weights(config.init_from))
    self.size = batch_size * mesh.size
    self.place = sharding.batch_sharding(mesh)
    self.nets, self.encode = nets, jax.jit(nets.encode)

  def moments(self, pictures):
    """Of each uint8 [h, w, 3] of an iterator, float32 [h/8, w/8, 8]."""
    run = lambda batch: self.encode(self.params, batch)
    return self.batched(run, map(images.to_float, pictures))

  def text(self, captions):
    """Of each caption, (context [77, 2048], pooled [1280])."""
    run = lambda batch: self.nets.text.encode(self.params, batch)
    tokens = self.tokenize(captions) if captions else []
    return self.batched(run, iter(np.asarray(tokens, np.int32)))

  def batched(self, run, rows):
    """Results row by row; while they are fetched, the next batch is run."""
    pending = None
    while batch := list(itertools.islice(rows, self.size)):
      padded = np.stack(batch + batch[-1:] * (self.size - len(batch)))
      started = run(jax.device_put(padded, self.place)), len(batch)
      if pending:
        yield from fetch(*pending)
      pending = started
    if pending:
      yield from fetch(*pending)


def fetch(result, count):
  """The first rows of a batch, one by one."""
  arrays, tree = jax.tree.flatten(result)
  for row in zip(*(np.asarray(array)[:count] for array in arrays)):
    yield tree.unflatten(row)


def finish(folder, layout, every, encoder, say):
  """The encoded empty caption, the whole index, and the sums."""
  uncond = folder / precomputed.UNCOND
  (context, pooled), *_ = encoder.text([''])
  row = precomputed.pack(layout.text, {'context': context, 'pooled': pooled})
  precomputed.write_rows(uncond, [row])
  left_out = ''.join(
    shard.part(folder).with_suffix('.txt').read_text() for shard in every
  )
  (folder / 'left_out.txt').write_text(left_out)
  paths = [shard.path(folder) for shard in every] + [uncond]
  sums = ''.join(f'{precomputed.digest(p)}  {p.name}\n' for p in paths)
  (folder / precomputed.SUMS).write_text(sums)
  table = index.join([shard.read(folder, layout) for shard in every])
  index.write(folder / precomputed.INDEX, layout.identity, table)
  shutil.rmtree(folder / precompute_writer.PARTS)
  size = sum(path.stat().st_size for path in paths)
  say(
    f'{len(table):,} records in {len(every)} shards, {size / 1e9:.3g} GB, '
    f'{size / len(table) / 1e3:.0f} kB each; {left_out.count(chr(10))} left out'
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


if __name__ == '__main__':
  config_flags.DEFINE_config_file('config', None, 'a file with get_config()')
  flags.DEFINE_string('output', None, 'folder of the cache')
  flags.DEFINE_integer('crops', 1, 'of each picture', 1)
  flags.DEFINE_bool('flips', False, 'add the mirrored picture of each crop')
  flags.DEFINE_enum('dtype', 'bfloat16', ['bfloat16', 'float16'], 'stored')
  flags.DEFINE_integer('shard_size', 1024, 'records in a file', 1)
  flags.DEFINE_integer('batch_size', 8, 'encoded at once, per device', 1)
  flags.mark_flags_as_required(['config', 'output'])
  cli.run(main)
