"""Where examples come from.

A source has a length, `sizes` int32 [n, 2] (height, width) known without
decoding a picture, and source[i], a dict of
  image            encoded bytes, or uint8 [h, w, 3]
  caption          string
  original_size    (height, width)
  name             path or id, for error reports
  aesthetic_score  float, optional
  flippable        optional; False where a mirrored picture belies the caption
"""

import concurrent.futures
import csv
import json
import logging
import pathlib

import numpy as np
import tqdm

from sdxl_jax.data import images, scenes

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
METADATA = ('metadata.jsonl', 'metadata.csv')
SHOWN = 5  # names listed in an error


def complain(problem, names, remedy):
  """An error that fits one screen: what, how many, the first few, the cure."""
  names = [str(name) for name in names]
  lines = names[:SHOWN] + ['...'] * (len(names) > SHOWN)
  listed = ''.join(f'\n  {line}' for line in lines)
  return ValueError(f'{problem} ({len(names)}):{listed}\n{remedy}')


def find(folder):
  """All visible files below a folder, sorted, so that hosts number alike."""
  if not folder.is_dir():
    raise FileNotFoundError(
      f'image folder {folder}: no such folder; check the path'
    )
  return sorted(
    path
    for path in folder.rglob('*')
    if path.is_file() and not path.name.startswith('.')
  )


def pair(files):
  """Rows {path} of pictures that stand beside captions of the same name."""
  pictures = [f for f in files if f.suffix.lower() in SUFFIXES]
  captions = {f for f in files if f.suffix == '.txt'}
  bare = [f for f in pictures if f.with_suffix('.txt') not in captions]
  if bare:
    raise complain(
      'images without a caption',
      bare,
      'Write the caption of each into a .txt file of the same name, remove the '
      f'image, or list all in {" or ".join(METADATA)}.',
    )
  lonely = captions - {f.with_suffix('.txt') for f in pictures}
  if lonely:
    raise complain(
      'caption files without an image',
      sorted(lonely),
      f'Add the image of the same name ({" ".join(SUFFIXES)}) or remove the '
      '.txt file.',
    )
  return [{'path': f} for f in pictures]


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


def read_metadata(path):
  """Rows {path, caption, maybe aesthetic_score} of a metadata file."""
  table = read_table(path)
  for column in ('file_name', 'text'):
    lacking = [
      n
      for n, row in enumerate(table, 1)
      if not isinstance(row.get(column), str)
    ]
    if lacking:
      raise complain(
        f'{path}: rows without a text in column {column!r}',
        [f'row {n}: {str(table[n - 1])[:60]}' for n in lacking],
        'The columns are file_name, text and, if wanted, aesthetic_score.',
      )
  rows = []
  for number, row in enumerate(table, 1):
    image = path.parent / row['file_name']
    rows.append({'path': image, 'caption': row['text']})
    score = row.get('aesthetic_score')
    if score not in (None, ''):
      try:
        rows[-1]['aesthetic_score'] = float(score)
      except (TypeError, ValueError):
        raise ValueError(
          f'{path}, row {number}: aesthetic_score = {score!r} is not a number; '
          'write one of about 1 to 10, or leave it empty'
        ) from None
  missing = [row['path'] for row in rows if not row['path'].is_file()]
  if missing:
    raise complain(
      f'{path}: rows whose image is missing',
      missing,
      'Paths are relative to the metadata file. Add the images or remove the '
      'rows.',
    )
  return rows


def measure(paths):
  """(height, width) of every picture from its header, None where unreadable."""

  def size(path):
    try:
      return images.upright_size(path)
    except images.UnreadableImage:
      return None

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    progress = tqdm.tqdm(
      pool.map(size, paths),
      total=len(paths),
      desc='reading image sizes',
      delay=2,
    )
    return list(progress)


class Folder:
  """Images below a folder with captions, from .txt files or a metadata table.

  Either every image has a .txt file of the same name beside it, or the folder
  holds metadata.jsonl or metadata.csv with the columns file_name, text and, if
  wanted, aesthetic_score; then only the images listed are read.

  Args:
    path: of the folder.

  Raises:
    FileNotFoundError: for no such folder.
    ValueError: for a folder whose images and captions do not match.
  """

  def __init__(self, path):
    folder = pathlib.Path(path)
    files = find(folder)
    tables = [folder / name for name in METADATA if folder / name in files]
    if len(tables) == 2:
      raise ValueError(f'{folder} has {" and ".join(METADATA)}; remove one')
    rows = read_metadata(tables[0]) if tables else pair(files)
    if not rows:
      raise ValueError(
        f'{folder} has no images among its {len(files)} files; images end in '
        f'{" ".join(SUFFIXES)}'
      )
    sizes = measure([row['path'] for row in rows])
    # Pictures left out, since their header cannot be read.
    self.unreadable = [r['path'] for r, size in zip(rows, sizes) if not size]
    if self.unreadable:
      problem = complain(
        f'{folder}: unreadable images are left out',
        self.unreadable,
        'Repair or remove them.',
      )
      if len(self.unreadable) == len(rows):
        raise problem
      logging.warning('%s', problem)
    self.rows = [row for row, size in zip(rows, sizes) if size]
    self.sizes = np.array([size for size in sizes if size], np.int32)

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, index):
    example = dict(self.rows[index])
    path = example.pop('path')
    try:
      example['image'] = path.read_bytes()
    except OSError as error:
      raise images.UnreadableImage(path, error) from error
    if 'caption' not in example:
      text = path.with_suffix('.txt').read_text('utf-8', errors='replace')
      example['caption'] = text.strip()
    example['original_size'] = tuple(int(n) for n in self.sizes[index])
    example['name'] = str(path)
    return example


SOURCES = {'folder': Folder, 'scenes': scenes.Scenes}


def make_source(kind, **settings):
  """The source of a kind ('folder', 'scenes') with its own settings."""
  if kind not in SOURCES:
    raise ValueError(
      f'source kind {kind!r} is unknown; choose one of {sorted(SOURCES)}'
    )
  return SOURCES[kind](**settings)
