"""Pictures in a folder, with captions in .txt files or in one table."""

import csv
import functools
import json
import pathlib

import fsspec
import pyarrow as pa

from sdxl_jax.data import images, index, records

METADATA = ('metadata.jsonl', 'metadata.csv')
CHUNK = 5000  # pictures indexed at a time


class Folder(records.Records):
  """Images below a folder with captions, from .txt files or a metadata table.

  Either every image has a .txt file of the same name beside it, or the folder
  holds metadata.jsonl or metadata.csv with the columns file_name, text and, if
  wanted, aesthetic_score and others; then only the images listed are read.

  Args:
    path: of the folder.
    columns: others of the table, by which filters choose.
    workers: processes that read headers.

  Raises:
    FileNotFoundError: for no such folder.
    ValueError: for a folder whose images and captions do not match.
  """

  def __init__(self, path, columns=(), workers=8):
    self.folder = pathlib.Path(path).absolute()
    files = find(self.folder)
    tables = [self.folder / n for n in METADATA if self.folder / n in files]
    if len(tables) == 2:
      raise ValueError(f'{path} has {" and ".join(METADATA)}; remove one')
    rows = read_metadata(tables[0]) if tables else pair(files, self.folder)
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
    caption = self.value('caption', i)
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
  hidden = lambda path: any(
    part.startswith('.') for part in path.relative_to(folder).parts
  )
  return sorted(
    path for path in folder.rglob('*') if path.is_file() and not hidden(path)
  )


def pair(files, folder):
  """Rows {file_name} of pictures that stand beside captions of their name."""
  pictures = [f for f in files if f.suffix.lower() in images.SUFFIXES]
  captions = {f for f in files if f.suffix == '.txt'}
  bare = [f for f in pictures if f.with_suffix('.txt') not in captions]
  if bare:
    raise records.complain(
      'images without a caption',
      bare,
      'Write the caption of each into a .txt file of the same name, remove the '
      f'image, or list all in {" or ".join(METADATA)}.',
    )
  lonely = captions - {f.with_suffix('.txt') for f in pictures}
  if lonely:
    raise records.complain(
      'caption files without an image',
      sorted(lonely),
      f'Add the image of the same name ({" ".join(images.SUFFIXES)}) or remove '
      'the .txt file.',
    )
  return [{'file_name': str(f.relative_to(folder))} for f in pictures]


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
  """Rows {file_name, text, and more} of a metadata file, checked."""
  rows = read_table(path)
  for column in ('file_name', 'text'):
    lacking = [
      f'row {n}: {str(row)[:60]}'
      for n, row in enumerate(rows, 1)
      if not isinstance(row.get(column), str)
    ]
    if lacking:
      raise records.complain(
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
    raise records.complain(
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
  fs = fsspec.filesystem('file')
  for start in range(0, len(rows), CHUNK):
    chunk = rows[start : start + CHUNK]
    yield chunk, [index.stamp(fs, folder / row['file_name']) for row in chunk]


def measure(rows, folder, columns):
  """A part of the index."""
  return records.make_table(
    [records.size_of(folder / row['file_name']) for row in rows],
    [True] * len(rows),
    {name: [row.get(name) for row in rows] for name in columns},
    path=pa.array([row['file_name'] for row in rows]),
    caption=pa.array([row.get('text') for row in rows], pa.string()),
  )
