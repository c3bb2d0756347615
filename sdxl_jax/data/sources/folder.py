"""Pictures in a folder, with captions in .txt files or in one table."""

import csv
import functools
import json
import os
import pathlib

import pyarrow as pa
import tqdm

from sdxl_jax.data import images
from sdxl_jax.data.sources import index, indexed

METADATA = ('metadata.jsonl', 'metadata.csv')
CHUNK = 5000  # pictures indexed at a time


class Folder(indexed.IndexedSource):
  """Images below a folder with captions, from .txt files or a metadata table.

  Either every image has a .txt file of the same name beside it, or the folder
  holds metadata.jsonl or metadata.csv with the columns file_name, text and, if
  wanted, aesthetic_score and others; then only the images listed are read.

  Args:
    path: of the folder.
    captions: whether there are any; without them all captions are ''.
    columns: others of the table, by which filters choose.
    workers: processes that read headers.

  Raises:
    FileNotFoundError: for no such folder.
    ValueError: for a folder whose images and captions do not match.
  """

  def __init__(self, path, captions=True, columns=(), workers=8):
    self.folder, self.captions = pathlib.Path(path).absolute(), captions
    files = find(self.folder)
    tables = [name for name in METADATA if name in files]
    if len(tables) == 2:
      raise ValueError(f'{path} has {" and ".join(METADATA)}; remove one')
    if tables:
      rows = read_metadata(self.folder / tables[0], captions)
    else:
      rows = pair(files, captions)
    if not rows:
      raise ValueError(
        f'{path} has no images among its {len(files)} files; images end in '
        f'{" ".join(images.SUFFIXES)}'
      )
    columns = ('aesthetic_score', *columns) if tables else ()
    super().__init__(
      index.load(
        self.folder,
        {'source': 'folder', 'columns': list(columns)},
        list(chunks(rows, self.folder)),
        functools.partial(measure, folder=self.folder, columns=columns),
        workers,
      )
    )

  def name(self, i):
    return str(self.folder / self.value('path', i))

  def read(self, i):
    path = self.folder / self.value('path', i)
    try:
      image = path.read_bytes()
    except OSError as error:
      raise images.UnreadableImage(path, error) from error
    caption = self.value('caption', i) if self.captions else ''
    if caption is None:
      text = path.with_suffix('.txt').read_text('utf-8', errors='replace')
      caption = text.strip()
    return {'image': image, 'caption': caption}


def find(folder):
  """All visible files below a folder, sorted, so that hosts number alike."""
  if not folder.is_dir():
    raise FileNotFoundError(
      f'image folder {folder}: no such folder; check the path'
    )
  return sorted(
    tqdm.tqdm(walk(folder), desc='looking for pictures', unit='file', delay=2)
  )


def walk(folder, below=''):
  """Paths of the visible files below a folder, relative to it."""
  for entry in os.scandir(folder):
    if entry.name.startswith('.'):
      continue
    if entry.is_dir(follow_symlinks=False):
      yield from walk(entry.path, f'{below}{entry.name}/')
    elif entry.is_file():
      yield below + entry.name


def pair(files, captions):
  """Rows {file_name} of pictures; captions of their names must be there."""
  suffix = lambda file: os.path.splitext(file)[1]
  caption_of = lambda file: f'{os.path.splitext(file)[0]}.txt'
  pictures = [f for f in files if suffix(f).lower() in images.SUFFIXES]
  rows = [{'file_name': f} for f in pictures]
  if not captions:
    return rows
  captions = {f for f in files if suffix(f) == '.txt'}
  bare = [f for f in pictures if caption_of(f) not in captions]
  if bare:
    raise indexed.dataset_error(
      'images without a caption',
      bare,
      'Write the caption of each into a .txt file of the same name, remove the '
      f'image, or list all in {" or ".join(METADATA)}.',
    )
  lonely = captions - set(map(caption_of, pictures))
  if lonely:
    raise indexed.dataset_error(
      'caption files without an image',
      sorted(lonely),
      f'Add the image of the same name ({" ".join(images.SUFFIXES)}) or remove '
      'the .txt file.',
    )
  return rows


def read_table(path):
  """The rows of a metadata file as dicts."""
  if path.suffix == '.csv':
    with path.open(newline='', encoding='utf-8-sig') as file:
      return list(csv.DictReader(file))
  rows = []
  for number, line in enumerate(path.read_text('utf-8').splitlines(), 1):
    if line.strip():
      try:
        rows.append({**json.loads(line)})
      except (ValueError, TypeError) as error:
        raise ValueError(
          f'{path}, line {number} is not a JSON object ({error}): {line[:60]}\n'
          'Write one {"file_name": ..., "text": ...} per line.'
        ) from error
  return rows


def read_metadata(path, captions):
  """Rows {file_name, text, and more} of a metadata file, checked."""
  rows = read_table(path)
  for column in ('file_name', 'text') if captions else ('file_name',):
    lacking = [
      f'row {n}: {str(row)[:60]}'
      for n, row in enumerate(rows, 1)
      if not isinstance(row.get(column), str)
    ]
    if lacking:
      raise indexed.dataset_error(
        f'{path}: rows without a text in column {column!r}',
        lacking,
        'The columns are file_name, text and, if wanted, aesthetic_score.',
      )
  missing = [
    row['file_name']
    for row in rows
    if not (path.parent / row['file_name']).is_file()
  ]
  if missing:
    raise indexed.dataset_error(
      f'{path}: rows whose image is missing',
      missing,
      'Paths are relative to the metadata file. Add the images or remove the '
      'rows.',
    )
  for number, row in enumerate(rows, 1):
    score = row.get('aesthetic_score')
    try:
      float(score or 0)
    except (TypeError, ValueError):
      raise ValueError(
        f'{path}, row {number}: aesthetic_score = {score!r} is not a number; '
        'write one of about 1 to 10, or leave it empty'
      ) from None
  return rows


def chunks(rows, folder):
  """Parts for index.load; a part is as old as its pictures."""
  progress = tqdm.tqdm(rows, desc='looking for changes', unit='file', delay=2)
  stats = (os.stat(folder / row['file_name']) for row in progress)
  stamps = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
  for start in range(0, len(rows), CHUNK):
    chunk = slice(start, start + CHUNK)
    yield rows[chunk], stamps[chunk]


def measure(rows, folder, columns):
  """A part of the index."""
  return indexed.make_table(
    [indexed.size_of(folder / row['file_name']) for row in rows],
    [True] * len(rows),
    {name: [row.get(name) for row in rows] for name in columns},
    path=pa.array([row['file_name'] for row in rows]),
    caption=pa.array([row.get('text') for row in rows], pa.string()),
  )
