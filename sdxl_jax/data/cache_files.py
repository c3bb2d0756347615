"""Completes a cache: its index, checksums and list of unreadable images."""

import hashlib
import pathlib
import shutil
from collections.abc import Sequence

import pyarrow as pa

from sdxl_jax import atomic_write
from sdxl_jax.data import cache_plan, kept_records
from sdxl_jax.data.sources import cache_layout, index, indexed

LEFT_OUT = 'left_out.txt'
# The order of the index's columns, however its parts came to be.
TYPES = {'aesthetic_score': pa.float64(), 'reason': pa.string()}


def join_parts(
  folder: pathlib.Path,
  shards: Sequence[cache_plan.Shard],
  kept: kept_records.Kept,
  source: indexed.Source,
) -> pa.Table:
  """Joins the shards' parts of the index, those of an update to a fresh one's.

  Args:
    folder: of the cache.
    shards: all, finished.
    kept: the cache before an update.
    source: of the images, which names the records.
  """
  parts, names = [], pa.array([shard.name for shard in shards])
  for number, shard in enumerate(shards):
    part = kept.part(shard)
    if part is None:
      part = shard.read_part(folder)
    # The dataset may have moved, and the shards may be others.
    codes = pa.array([number] * len(shard.ids), pa.int32())
    new = {
      'name': pa.array([source.name(i) for i in shard.ids.tolist()]),
      'shard': pa.DictionaryArray.from_arrays(codes, names),
    }
    for column, values in new.items():
      place = part.column_names.index(column)
      part = part.set_column(place, column, values)
    parts.append(with_columns(part))
  # A part may lack columns that only settings of captions make.
  table = index.join(parts)
  return table.select(sorted(table.column_names))


def with_columns(table: pa.Table) -> pa.Table:
  """Gives a part of an index all columns, in one order."""
  for name, dtype in TYPES.items():
    if name not in table.column_names:
      table = table.append_column(name, pa.nulls(len(table), dtype))
    place = table.column_names.index(name)
    table = table.set_column(place, name, table[name].cast(dtype))
  return table.select(sorted(table.column_names))


def complete(
  folder: pathlib.Path,
  layout: cache_layout.Layout,
  shards: Sequence[cache_plan.Shard],
  table: pa.Table,
) -> None:
  """Replaces index and layout, all else before them, and removes old files.

  Until the index is replaced, the folder holds the cache as it was.

  Args:
    folder: of the cache.
    layout: of the cache.
    shards: all, finished.
    table: of `join_parts`.
  """
  # All files but the index and the layout. A kept shard has its old checksum.
  text = ''.join(f'{line}\n' for line in unreadable_of(table))
  atomic_write.write_text(folder / LEFT_OUT, text)
  known = read_sums(folder)
  paths = [shard.path(folder) for shard in shards]
  sums = {p.name: known.get(p.name) or digest(p) for p in paths}
  uncond = folder / cache_layout.UNCOND
  sums[uncond.name] = digest(uncond)
  lines = ''.join(f'{value}  {name}\n' for name, value in sums.items())
  atomic_write.write_text(folder / cache_layout.SUMS, lines)
  # The index completes the cache, and the layout ends the update.
  path = folder / cache_layout.INDEX
  index.write(path, layout.settings_identity, table)
  layout.save(folder)
  remove_others(folder, {shard.name for shard in shards})


def unreadable_of(table: pa.Table) -> list[str]:
  """Returns a line for each image that could not be read: its name, why."""
  problems = table['problem'].to_numpy()
  rows = table.filter(problems != indexed.USABLE)
  names, reasons = rows['name'].to_pylist(), rows['reason'].to_pylist()
  return [indexed.printable(f'{n}: {r}') for n, r in zip(names, reasons)]


def read_sums(folder: pathlib.Path) -> dict[str, str]:
  """Reads {name: sum} of the files of a cache, {} if it is not finished."""
  path = folder / cache_layout.SUMS
  if not path.exists():
    return {}
  lines = [line.split('  ', 1) for line in path.read_text().splitlines()]
  return {name: value for value, name in lines}


def digest(path: pathlib.Path) -> str:
  """Hashes a file as sha256sum does."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def remove_others(folder: pathlib.Path, names: set[str]) -> None:
  """Removes shards that no index names, and what killed processes left."""
  for path in folder.glob(cache_layout.SHARDS):
    if path.name.removesuffix(cache_layout.SUFFIX) not in names:
      path.unlink()
  for partial in folder.glob('*.partial'):
    partial.unlink()
  shutil.rmtree(folder / cache_plan.PARTS, ignore_errors=True)
