"""Brings a cache up to date: computes only what is new or changed."""

import concurrent.futures
import dataclasses
import functools
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from sdxl_jax.data import (
  cache_files,
  cache_plan,
  dataset,
  kept_records,
  precompute_writer,
  prefetching,
)
from sdxl_jax.data.sources import cache_layout, precomputed, record_changes
from sdxl_jax.distributed import multihost
from sdxl_jax.training import (
  cache_encoder,
  cache_settings,
  folder_lock,
  run_setup,
)

MAX_NAMED = 5  # unreadable images that the last line names


def update(
  setup: run_setup.LocalSetup,
  folder: pathlib.Path,
  layout: cache_layout.Layout,
  encoder: cache_encoder.Encoder,
  shard_size: int,
  say: Callable[[str], Any],
  check_folder: Callable[[], None],
) -> None:
  """Brings the cache in a locked folder up to date.

  Args:
    setup: with the source of the images.
    folder: of the cache, perhaps empty.
    layout: that the cache must have.
    encoder: of images and captions.
    shard_size: records in a file, at most.
    say: takes a line for the user.
    check_folder: raises FolderLost if this process may no longer write to the
      folder; called before each file.

  Raises:
    OSError: if a file cannot be written; what is finished is kept.
  """
  cache = cache_settings.open_cache(
    folder, layout, setup.config, setup.source, say
  )
  check_folder()  # the nets were loaded since it was locked
  if cache and cache.layout.records in ('', layout.records):
    finish(folder, layout, cache, say)
    return

  # Records of a finished cache that are as they were are copied.
  records = record_changes.of_source(setup.source)
  if cache:
    changes = record_changes.compare(cache.records, records)
    say(f'{folder} is brought up to date: {changes}')
  elif multihost.is_primary():
    layout.save(folder)
  kept, sizes = kept_records.Kept(cache), setup.source.sizes
  plan = cache_plan.plan_shards(sizes, records, layout, shard_size)
  work = Work(setup, folder, layout, records, list(plan), kept, check_folder)

  # All shards, then what they have in common.
  try:
    write_shards(work, encoder, say)
    multihost.barrier('all shards are written')
    if multihost.is_primary():
      complete(work, encoder, say)
  except folder_lock.FolderLost:
    raise
  except OSError as error:
    raise OSError(
      f'{error}\nFree some space or remove the cause, and run the same command '
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
  records: record_changes.Records  # of the source
  shards: Sequence[cache_plan.Shard]  # all
  kept: kept_records.Kept
  check_folder: Callable[[], None]  # raises once another command has it

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
    OSError: if the disk is full, or another command has the folder.
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
      examples = prefetching.prefetch(pool, make_crops, ids)
      work.check_folder()
      precompute_writer.write_shard(
        shard,
        folder,
        work.layout,
        work.kept,
        work.found[shard.ids],
        with_progress(examples, bar),
        encoder,
        dataset.make_captioning(config),
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
  work.check_folder()
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
    + ''.join(f'\n  {line}' for line in unreadable[:MAX_NAMED])
  )
