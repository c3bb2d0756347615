"""Measures the images of a folder for its index, with their captions."""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import tqdm

from sdxl_jax.data.sources import (
  captions,
  folder_records,
  index,
  indexed,
  measuring,
)

SCORE = 'aesthetic_score'  # column of tables and index
FEW_BYTES = 1 << 14  # that nearly every caption file has at most
CHUNK = 5000  # images in a part of the index

Item = folder_records.Item


def load(
  folder: pathlib.Path,
  found: folder_records.Found,
  settings: folder_records.Settings,
  workers: int,
) -> list[pa.Table]:
  """Returns the parts of an index, after measuring what is new or has changed.

  Args:
    folder: of the images.
    found: in it.
    settings: by which it was found.
    workers: processes that read headers.
  """
  tables = []
  if found.items:
    columns = [SCORE, *settings.columns] if found.tables else []
    build_options = {'columns': columns, 'encoding': settings.encoding}
    build_options |= indexed.if_set(mask=settings.mask)
    table = index.load(
      folder,
      {'source': 'folder', 'caption': settings.caption, **build_options}
      | indexed.if_set(
        several=settings.several,
        caption_extension=settings.extension,
        num_repeats_in_names=settings.repeats,
      ),
      list(chunks(found.items, folder)),
      functools.partial(measure, folder=folder, **build_options),
      workers,
    )
    tables.append(table)
  # What is no image needs no measuring, and no place in the file.
  if found.unusable:
    tables.append(unusable_rows(found.unusable))
  return tables


def chunks(
  items: Sequence[Item], folder: pathlib.Path
) -> Iterator[tuple[list[Item], list[list]]]:
  """Yields parts for index.load: items, and versions of their files."""
  # The only look at every file of an indexed folder.
  progress = tqdm.tqdm(items, desc='checking changes', unit='image', delay=2)
  versions = [
    [
      version(os.path.join(folder, item[name]))
      for name in ('path', 'caption_file', 'mask')
      if name in item
    ]
    for item in progress
  ]
  for start in range(0, len(items), CHUNK):
    chunk = slice(start, start + CHUNK)
    yield items[chunk], versions[chunk]


def version(path: str) -> list[int]:
  """Returns size and time of a file, [] if it has vanished."""
  try:
    stat = os.stat(path)
  except OSError:
    return []
  return [stat.st_size, stat.st_mtime_ns]


def measure(
  items: Sequence[Item],
  folder: pathlib.Path,
  columns: Sequence[str],
  encoding: str,
  mask: str = '',
) -> pa.Table:
  """Measures a part of the index: some images and their captions."""
  measured, found, scores = [], [], []
  for item in items:
    caption = read_caption(item, folder, encoding)
    score, wrong = measuring.parse_score(column_of(item, SCORE))
    measured.append(measure_item(item, folder, caption, score, wrong))
    found.append(caption)
    scores.append(score)
  values = {name: [column_of(item, name) for item in items] for name in columns}
  if SCORE in values:
    values[SCORE] = scores
  locations = {
    'path': paths_of([item['path'] for item in items]),
    'caption': pa.array([caption.text for caption in found], pa.string()),
  }
  # All captions of those that have several.
  if any(caption.texts for caption in found):
    texts = [caption.texts or None for caption in found]
    locations['texts'] = pa.array(texts, pa.list_(pa.string()))
  if mask:
    locations['mask'] = paths_of([item.get('mask') for item in items])
  return indexed.make_table(measured, values, **locations)


def column_of(item: Item, name: str) -> Any:
  """Returns a column's value of an item, None of one that no table lists."""
  return item['columns'].get(name) if 'columns' in item else None


def read_caption(
  item: Item, folder: pathlib.Path, encoding: str
) -> captions.Caption:
  """Returns the caption of an item, read from its file if it has one."""
  if 'caption_file' not in item:
    return captions.Caption(*item['caption'])
  try:
    path = os.path.join(folder, item['caption_file'])
    with open(path, 'rb', buffering=0) as file:
      data = file.read(FEW_BYTES)
      # To ask for so many at once would reserve their memory.
      if len(data) == FEW_BYTES:
        data += file.read(captions.MAX_BYTES)
  except OSError as error:
    detail = f'{item["caption_file"]}: {error.strerror}'
    return captions.NONE._replace(detail=detail)
  caption = captions.parse(data, encoding)
  if caption.detail:
    detail = f'{item["caption_file"]}: {caption.detail}'
    return caption._replace(detail=detail)
  return caption


def measure_item(
  item: Item,
  folder: pathlib.Path,
  caption: captions.Caption,
  score: float | None,
  wrong: str,
) -> indexed.Measured:
  """Measures an image; `wrong` says what is wrong with its score."""
  path = item['path']
  try:
    with contextlib.ExitStack() as stack:
      file, mask = (
        stack.enter_context(open(os.path.join(folder, item[name]), 'rb'))
        if name in item
        else None
        for name in ('path', 'mask')
      )
      measured = measuring.measure(path, file, caption, score, mask)
  except OSError as error:
    return measuring.unreadable(path, error)
  return measuring.check_score(measured, wrong)


def paths_of(paths: Sequence[str | None]) -> pa.Array:
  """Makes a column of paths, which need not be text."""
  encoded = [None if path is None else encode_path(path) for path in paths]
  return pa.array(encoded, pa.binary())


def encode_path(path: str) -> bytes:
  """Returns the bytes of a path; of one that no file can have, others."""
  try:
    return os.fsencode(path)
  except UnicodeEncodeError:
    return path.encode('utf-8', 'backslashreplace')


def unusable_rows(unusable: Sequence[indexed.Measured]) -> pa.Table:
  """Makes the rows of an index for what is no image with a caption."""
  names = [record.name for record in unusable]
  return indexed.make_table(unusable, {}, path=paths_of(names))
