"""Precomputes moments and encoded text of a dataset, as shards for training.

  python -m sdxl_jax.precompute --config configs/stage3.py --output CACHE \
    --config.init_from=SDXL --config.data.folder.path=IMAGES

Then train with --config.data.source=precomputed
--config.data.precomputed.path=CACHE. To continue after an interruption, or
after the data changed, run the same command again: only what is new or changed
is computed.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm
from absl import flags
from ml_collections import config_flags

from sdxl_jax import cli
from sdxl_jax.data import (
  cache_files,
  cache_plan,
  kept_records,
  precompute_writer,
)
from sdxl_jax.data.sources import cache_layout, cache_records, precomputed
from sdxl_jax.distributed import multihost
from sdxl_jax.training import (
  cache_encoder,
  cache_settings,
  config_validation,
  run_setup,
)

MAX_NAMED = 5  # unreadable images that the last line names


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
  """Writes the moments and encoded text of a dataset, or updates them.

  The format is that of data/sources/cache_layout.py.

  Args:
    config: as for training.
    output: folder, the same one for all processes.
    crops: different crops of each image.
    flips: whether to add the mirror image of each crop.
    dtype: of moments and text in the shards, 'bfloat16' or 'float16'.
    shard_size: records in a file, at most.
    batch_size: images, and captions, encoded at once on each device.
    say: takes a line for the user.

  Raises:
    ValueError: for an invalid config, or a folder that holds a cache of other
      settings or nets; nothing in it is changed.
    OSError: if the disk is full; what is finished is kept.
  """
  # The dataset, and the nets on this process's own devices.
  cache_settings.check_images(config)
  config_validation.check(config)
  multihost.start(config.mesh.processes)
  setup = run_setup.set_up_locally(config, config.init_from, say)
  encoder = cache_encoder.Encoder(setup, batch_size)
  records = cache_records.of_source(setup.source)

  # The folder, new or of an earlier run.
  layout = cache_settings.make_layout(
    setup.config, setup.model, setup.source, crops, flips, dtype
  )
  layout = layout.with_nets(encoder.identity())
  folder = pathlib.Path(output).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  cache = cache_settings.open_cache(
    folder, layout, setup.config, setup.source, say
  )
  if cache and cache.layout.records in ('', layout.records):
    finish(folder, layout, cache, say)
    return

  # Records of a finished cache that are as they were are copied.
  if cache:
    changes = cache_records.compare(cache.records, records)
    say(f'{folder} is brought up to date: {changes}')
  elif multihost.is_primary():
    layout.save(folder)
  kept, sizes = kept_records.Kept(cache), setup.source.sizes
  plan = cache_plan.plan_shards(sizes, records, layout, shard_size)
  work = Work(setup, folder, layout, records, list(plan), kept)

  # All shards, then what they have in common.
  try:
    write_shards(work, encoder, say)
    multihost.barrier('all shards are written')
    if multihost.is_primary():
      complete(work, encoder, say)
  except OSError as error:
    raise OSError(
      f'{error}\nFree some space, or mend what it is, and run the same command '
      f'again: {folder} keeps what is finished'
    ) from error


def finish(
  folder: pathlib.Path,
  layout: cache_layout.Layout,
  cache: precomputed.Precomputed,
  say: Callable[[str], Any],
) -> None:
  """Ends a command that finds nothing to compute."""
  if cache.layout.is_checkable and multihost.is_primary():
    # The data may have moved; an update may have been killed at its very end.
    if cache.layout.origin != layout.origin:
      layout.save(folder)
    names = {name for name, *_ in precomputed.shard_rows(cache.table)}
    cache_files.remove_others(folder, names)
  say(f'{folder} is finished')


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be written, and of what."""

  setup: run_setup.LocalSetup
  folder: pathlib.Path  # of the cache
  layout: cache_layout.Layout
  records: cache_records.Records  # of the source
  shards: Sequence[cache_plan.Shard]  # all
  kept: kept_records.Kept

  @functools.cached_property
  def found(self) -> np.ndarray:
    """int64 [n], rows of the kept index for all records; -1: to compute."""
    return self.kept.find(self.records)

  def is_missing(self, shard: cache_plan.Shard) -> bool:
    """Whether a shard is to be written."""
    done = self.kept.part(shard) is not None
    return not done and shard.read_part(self.folder) is None

  def to_compute(self, shard: cache_plan.Shard) -> list[int]:
    """Returns the ids of a shard's records that are not copied."""
    return shard.ids[self.found[shard.ids] < 0].tolist()


def write_shards(
  work: Work, encoder: cache_encoder.Encoder, say: Callable[[str], Any]
) -> None:
  """Writes this process's share of the shards, but for those that exist.

  Raises:
    OSError: if the disk is full.
  """
  folder, config, source = work.folder, work.setup.config, work.setup.source
  (folder / cache_plan.PARTS).mkdir(exist_ok=True)
  mine = work.shards[jax.process_index() :: jax.process_count()]
  mine = [shard for shard in mine if work.is_missing(shard)]
  free = shutil.disk_usage(folder).free
  cache_plan.check_space(folder, work.layout, mine, free)
  todo = sum(len(work.to_compute(shard)) for shard in mine)
  bar = tqdm.tqdm(total=todo, unit='image')
  started = time.monotonic()
  # Threads crop images while the devices encode.
  threads = config.data.num_threads or 1
  with bar, concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for shard in mine:
      make_crops = precompute_writer.CropMaker(
        source,
        work.records.keys,
        shard.bucket,
        work.layout,
        config.seed,
        config.data.background,
      )
      ids = work.to_compute(shard)
      examples = precompute_writer.prefetch(pool, make_crops, ids)
      precompute_writer.write_shard(
        shard,
        folder,
        work.layout,
        work.kept,
        work.found[shard.ids],
        with_progress(examples, bar),
        encoder,
      )
  if encoder.cut_captions.cut:
    say(encoder.cut_captions.describe())
  if todo and multihost.is_primary():
    rate = todo / (time.monotonic() - started)
    say(
      f'{todo:,} images at {rate:.1f} per second, in each of '
      f'{jax.process_count()} processes'
    )


def with_progress(examples: Iterable, bar: tqdm.tqdm) -> Iterator:
  """Yields examples, and advances a progress bar by each."""
  for example in examples:
    yield example
    bar.update()


def complete(
  work: Work, encoder: cache_encoder.Encoder, say: Callable[[str], Any]
) -> None:
  """Writes the encoded empty caption and the index; reports what there is."""
  folder, layout, source = work.folder, work.layout, work.setup.source
  uncond = folder / cache_layout.UNCOND
  if not uncond.exists():
    (context, pooled), *_ = encoder.text([''])
    values = {'context': context, 'pooled': pooled}
    row = cache_layout.pack(layout.text, values)
    precompute_writer.write_rows(uncond, [row])
  table = cache_files.join_parts(folder, work.shards, work.kept, source)
  cache_files.complete(folder, layout, work.shards, table)
  # The account of the source was printed when it was made.
  paths = [shard.path(folder) for shard in work.shards] + [uncond]
  size = sum(path.stat().st_size for path in paths)
  unreadable = cache_files.unreadable_of(table)
  count = len(table) - len(unreadable)
  say(
    f'{count:,} records in {len(work.shards)} shards, {size / 1e9:.3g} GB, '
    f'{size / max(count, 1) / 1e3:.0f} kB each; {len(unreadable)} left out'
    + ''.join(f'\n  {name}: {why}' for name, why in unreadable[:MAX_NAMED])
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
