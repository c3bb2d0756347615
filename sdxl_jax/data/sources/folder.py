"""Images in a folder, with captions in text files or in metadata tables."""

import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sdxl_jax.data import image_formats, images
from sdxl_jax.data.sources import (
  folder_index,
  folder_listing,
  folder_records,
  folder_repeats,
  index,
  indexed,
  text_decoding,
)


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
    caption_extension: of caption files; '': .txt, or else .caption.
    num_repeats_in_names: whether names of folders have repeats and a caption,
      see `folder_repeats`.
    several: whether all captions of a list in a table are used.
    mask: suffix of mask files next to images, such as '.mask.png', or a folder
      of masks, see folder_masks; '': none.
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
    caption_extension: str = '',
    num_repeats_in_names: bool = False,
    several: bool = False,
    mask: str = '',
    columns: tuple[str, ...] = (),
    workers: int = 8,
  ):
    if not os.fspath(path):
      raise ValueError(
        'config.data.folder.path is empty: name the folder of the images'
      )
    text_decoding.check(encoding, 'config.data.folder.encoding')
    folder_records.check_extension(caption_extension)
    self.folder = pathlib.Path(path).expanduser().absolute()
    self.captions, self.several = captions, several
    self.num_repeats_in_names = num_repeats_in_names
    # Find the images, and what cannot be one.
    listing = folder_listing.list_files(self.folder)
    settings = folder_records.Settings(
      caption if captions else '',
      encoding,
      columns,
      several,
      caption_extension,
      num_repeats_in_names,
      mask,
    )
    self.mask = mask
    found = folder_records.find(self.folder, listing, settings)
    if not found.has_images:
      raise ValueError(no_images(path, listing.files))
    tables = folder_index.load(self.folder, found, settings, workers)
    super().__init__(index.join(tables), found.fields, found.beside)

  @property
  def repeats(self) -> np.ndarray | None:
    """int64 [n], how often a pass takes each image; None: once."""
    if not self.num_repeats_in_names:
      return None
    paths = self.table['path'].to_pylist()
    return folder_repeats.repeats_of([os.fsdecode(path) for path in paths])

  @property
  def remedy(self) -> str:
    """What to do where no image of the folder can be used."""
    if self.num_repeats_in_names:
      return folder_repeats.REMEDY
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
    if 'texts' in self.table.column_names and self.value('texts', i):
      example['captions'] = tuple(self.value('texts', i))
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
