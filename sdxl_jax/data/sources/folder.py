"""Images in a folder, with captions in text files or in metadata tables."""

import collections
import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import tqdm

from sdxl_jax.data import image_formats, images
from sdxl_jax.data.sources import (
  captions,
  folder_listing,
  folder_records,
  index,
  indexed,
  measuring,
  text_decoding,
)

SCORE = 'aesthetic_score'  # column of tables and index
FEW_BYTES = 1 << 14  # that nearly every caption file has at most
CHUNK = 5000  # images in a part of the index

Item = folder_records.Item


class Folder(indexed.IndexedSource):
  """Images below a folder with captions, from text files or metadata tables.

  Either images have a .txt or .caption file of the same name beside them, or a
  folder among those that contain them holds metadata.jsonl, metadata.csv or
  metadata.parquet with the columns file_name, a caption and, optionally,
  aesthetic_score and others; then only the images listed are read. Links are
  followed.

  Args:
    path: of the folder.
    captions: whether images have captions; otherwise all captions are ''.
    caption: column of the captions in tables.
    encoding: of text files that have no mark; '': UTF-8.
    mask: end of the names of masks beside images, such as '.mask.png', or a
      folder of masks, see folder_masks; '': none.
    columns: other columns of the tables, by which filters choose.
    workers: processes that read headers to index them.

  Raises:
    FileNotFoundError: if the folder does not exist.
    ValueError: for a folder without images, or a table that cannot be read.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    captions: bool = True,
    caption: str = 'text',
    encoding: str = '',
    mask: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    if not os.fspath(path):
      raise ValueError(
        'config.data.folder.path is empty: name the folder of the images'
      )
    text_decoding.check(encoding, 'config.data.folder.encoding')
    self.folder = pathlib.Path(path).expanduser().absolute()
    self.captions = captions
    # Find the images, and what cannot be one.
    listing = folder_listing.list_files(self.folder)
    settings = folder_records.Settings(
      caption if captions else '', encoding, columns, mask
    )
    self.mask = mask
    found = folder_records.find(self.folder, listing, settings)
    if not found.has_images:
      raise ValueError(no_images(path, listing.files))
    # Measure the images that are new or have changed.
    columns = (SCORE, *columns) if found.tables else ()
    tables = []
    if found.items:
      build_options = {'columns': list(columns), 'encoding': encoding}
      if mask:  # an index without masks is that of earlier versions
        build_options['mask'] = mask
      table = index.load(
        self.folder,
        {'source': 'folder', 'caption': settings.caption, **build_options},
        list(chunks(found.items, self.folder)),
        functools.partial(measure, folder=self.folder, **build_options),
        workers,
      )
      tables.append(table)
    # What is no image needs no measuring, and no place in the file.
    if found.unusable:
      tables.append(unusable_rows(found.unusable))
    super().__init__(index.join(tables), found.fields, found.beside)

  @property
  def remedy(self) -> str:
    """What to do where no image of the folder can be used."""
    if not self.captions:
      return ''
    return (
      'Write the caption of each image into a .txt file of the same name, or '
      'list all in metadata.jsonl, or train without captions (stage 0) by '
      'config.data.folder.captions=False.'
    )

  def name(self, i: int) -> str:
    return indexed.printable(self.path(i))

  def path(self, i: int) -> str:
    """Returns a record's path."""
    return os.path.join(self.folder, os.fsdecode(self.value('path', i)))

  def read(self, i: int) -> indexed.Example:
    try:
      with open(self.path(i), 'rb') as file:
        image = file.read()
      mask = self.read_mask(i) if self.mask else None
    except OSError as error:
      raise images.UnreadableImage(self.name(i), error) from error
    example = {'image': image, 'caption': self.value('caption', i)}
    return example | {'mask': mask} if self.mask else example

  def read_mask(self, i: int) -> bytes | None:
    """Reads the file of a record's mask; None if it has none."""
    path = self.value('mask', i)
    if path is None:
      return None
    with open(os.path.join(self.folder, os.fsdecode(path)), 'rb') as file:
      return file.read()


def no_images(path: str | os.PathLike, files: Sequence[str]) -> str:
  """Says that a folder has no images, and what it has."""
  suffixes = collections.Counter(os.path.splitext(file)[1] for file in files)
  common = [f'{n} {suffix or "none"}' for suffix, n in suffixes.most_common(5)]
  return (
    f'{path} has no images among its {len(files)} files (suffixes: '
    f'{", ".join(common) or "none"}); images end in '
    f'{" ".join(image_formats.COMMON)} or another suffix that Pillow reads. '
    'Tars and parquet files are read by another config.data.source'
  )


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
  measured, texts, scores = [], [], []
  for item in items:
    caption = read_caption(item, folder, encoding)
    score, wrong = measuring.parse_score(column_of(item, SCORE))
    measured.append(measure_item(item, folder, caption, score, wrong))
    texts.append(caption.text)
    scores.append(score)
  values = {name: [column_of(item, name) for item in items] for name in columns}
  if SCORE in values:
    values[SCORE] = scores
  locations = {
    'path': paths_of([item['path'] for item in items]),
    'caption': pa.array(texts, pa.string()),
  }
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
