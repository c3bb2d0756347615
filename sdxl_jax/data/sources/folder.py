"""Images in a folder, with captions in .txt files or in one table."""

import csv
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import tqdm

from sdxl_jax.data import images
from sdxl_jax.data.sources import index, indexed

METADATA = ('metadata.jsonl', 'metadata.csv')
CHUNK = 5000  # images in a part of the index


class Folder(indexed.IndexedSource):
  """Images below a folder with captions, from .txt files or a metadata table.

  Either every image has a .txt file of the same name beside it, or the folder
  holds metadata.jsonl or metadata.csv with the columns file_name, text and,
  optionally, aesthetic_score and others; then only the images listed are read.

  Args:
    path: of the folder.
    captions: whether images have captions; otherwise all captions are ''.
    columns: other columns of the table, by which filters choose.
    workers: processes that read headers to index them.

  Raises:
    FileNotFoundError: if the folder does not exist.
    ValueError: for a folder whose images and captions do not match.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    captions: bool = True,
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    self.folder, self.captions = pathlib.Path(path).absolute(), captions
    # List the images, by the table if there is one.
    files = list_files(self.folder)
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
    # Measure the images that are new or have changed.
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

  def name(self, i: int) -> str:
    return str(self.folder / self.value('path', i))

  def read(self, i: int) -> indexed.Example:
    path = self.folder / self.value('path', i)
    try:
      image = path.read_bytes()
    except OSError as error:
      raise images.UnreadableImage(path, error) from error
    caption = self.value('caption', i) if self.captions else ''
    # Without a table, captions are not in the index.
    if caption is None:
      text = path.with_suffix('.txt').read_text('utf-8', errors='replace')
      caption = text.strip()
    return {'image': image, 'caption': caption}


def list_files(folder: pathlib.Path) -> list[str]:
  """Lists all visible files below a folder, in the same order on every host."""
  if not folder.is_dir():
    raise FileNotFoundError(
      f'image folder {folder}: no such folder; check the path'
    )
  return sorted(
    tqdm.tqdm(walk(folder), desc='listing images', unit='file', delay=2)
  )


def walk(folder: str | os.PathLike, prefix: str = '') -> Iterator[str]:
  """Yields the visible files below a folder, as paths relative to it."""
  for entry in os.scandir(folder):
    if entry.name.startswith('.'):
      continue
    if entry.is_dir(follow_symlinks=False):
      yield from walk(entry.path, f'{prefix}{entry.name}/')
    elif entry.is_file():
      yield prefix + entry.name


def pair(files: Sequence[str], captions: bool) -> list[dict[str, str]]:
  """Makes a row {file_name} for each image, and checks that it has a caption.

  Args:
    files: relative paths.
    captions: whether each image must have a .txt file, and the reverse.

  Raises:
    ValueError: naming images without captions, or captions without images.
  """
  image_files, text_files = [], set()
  for file in files:
    suffix = os.path.splitext(file)[1]
    if suffix.lower() in images.SUFFIXES:
      image_files.append(file)
    elif suffix == '.txt':
      text_files.add(file)
  # Images without a caption, then captions without an image.
  if captions:
    caption_files = [f'{os.path.splitext(f)[0]}.txt' for f in image_files]
    uncaptioned = [
      image
      for image, caption in zip(image_files, caption_files)
      if caption not in text_files
    ]
    if uncaptioned:
      raise indexed.dataset_error(
        'images without a caption',
        uncaptioned,
        'Write the caption of each into a .txt file of the same name, remove '
        f'the image, or list all in {" or ".join(METADATA)}.',
      )
    if unmatched := text_files - set(caption_files):
      raise indexed.dataset_error(
        'caption files without an image',
        sorted(unmatched),
        f'Add the image of the same name ({" ".join(images.SUFFIXES)}) or '
        'remove the .txt file.',
      )
  return [{'file_name': file} for file in image_files]


def read_table(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the rows of a metadata file.

  Raises:
    ValueError: naming a line that is not a JSON object.
  """
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


def read_metadata(path: pathlib.Path, captions: bool) -> list[dict[str, Any]]:
  """Reads the rows {file_name, text, ...} of a metadata file and checks them.

  Args:
    path: of the file.
    captions: whether each row must have a text.

  Raises:
    ValueError: naming rows without a text or a score, or without an image.
  """
  rows = read_table(path)
  # Every row needs a file name, and an image of this name.
  check_texts(path, rows, ('file_name', 'text') if captions else ('file_name',))
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
  # The score may be absent, but must be a number.
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


def check_texts(
  path: pathlib.Path, rows: Sequence[dict], columns: Sequence[str]
) -> None:
  """Raises ValueError, naming the rows that lack a text in one of columns."""
  for column in columns:
    missing = [
      f'row {number}: {str(row)[:60]}'
      for number, row in enumerate(rows, 1)
      if not isinstance(row.get(column), str)
    ]
    if missing:
      raise indexed.dataset_error(
        f'{path}: rows without a text in column {column!r}',
        missing,
        'The columns are file_name, text and, optionally, aesthetic_score.',
      )


def chunks(
  rows: Sequence[dict], folder: pathlib.Path
) -> Iterator[tuple[list[dict], list[list[int]]]]:
  """Yields parts for index.load: rows, and size and time of their images."""
  # The only look at every file of an indexed folder.
  progress = tqdm.tqdm(rows, desc='checking changes', unit='file', delay=2)
  stats = [os.stat(folder / row['file_name']) for row in progress]
  versions = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
  for start in range(0, len(rows), CHUNK):
    chunk = slice(start, start + CHUNK)
    yield rows[chunk], versions[chunk]


def measure(
  rows: Sequence[dict], folder: pathlib.Path, columns: Sequence[str]
) -> pa.Table:
  """Measures a part of the index: some images."""
  return indexed.make_table(
    [
      indexed.Measured(
        row['file_name'], indexed.size_of(folder / row['file_name'])
      )
      for row in rows
    ],
    {name: [row.get(name) for row in rows] for name in columns},
    path=pa.array([row['file_name'] for row in rows]),
    caption=pa.array([row.get('text') for row in rows], pa.string()),
  )
