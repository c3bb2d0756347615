"""Finds the records of a folder: images and where their captions are."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sdxl_jax.data import image_formats
from sdxl_jax.data.sources import (
  captions,
  folder_listing,
  folder_masks,
  folder_repeats,
  folder_tables,
  indexed,
  metadata_table,
)

CAPTION_SUFFIXES = ('.txt', '.caption')  # in the order of preference
REPLACED = 'caption files, in place of which a table is read'

# Of an image to measure, as JSON: `path` relative to the folder, `columns`, and
# `caption_file` or `caption`, see `as_json`; `mask` where it has one.
Item = dict[str, Any]


class Settings(NamedTuple):
  """How the captions of a folder are read."""

  caption: str  # column of tables; '': images have no captions
  encoding: str  # of text files without a mark; '': UTF-8
  columns: Sequence[str]  # by which filters choose
  several: bool = False  # whether all captions of a list are used
  extension: str = ''  # of caption files; '': all of CAPTION_SUFFIXES
  repeats: bool = False  # whether names of folders have repeats and a caption
  mask: str = ''  # where masks are, see folder_masks; '': nowhere

  @property
  def suffixes(self) -> Sequence[str]:
    """Suffixes of caption files, in the order of preference."""
    return (self.extension.lower(),) if self.extension else CAPTION_SUFFIXES


def check_extension(extension: str) -> None:
  """Raises ValueError for a suffix that no caption file can have."""
  suffix = extension.lower()
  if suffix and (suffix[0] != '.' or suffix in image_formats.SUFFIXES):
    raise ValueError(
      f'config.data.folder.caption_extension is {extension!r}; it must be a '
      "suffix of text files with its dot, such as '.caption', or '' for .txt "
      'and, where there is none, .caption'
    )


class Found(NamedTuple):
  """The items of a folder, and everything else in it."""

  items: list[Item]
  unusable: list[indexed.Measured]
  beside: dict[str, int]  # {what: count} of files that are no items
  tables: list[str]  # paths of metadata files
  fields: list[str]  # columns of these

  @property
  def has_images(self) -> bool:
    """Whether there is an image, usable or not."""
    problems = {record.problem for record in self.unusable}
    imageless = {indexed.NO_IMAGE, indexed.UNKNOWN_SUFFIX, indexed.LINK}
    return bool(self.items or problems - imageless)


def find(
  folder: pathlib.Path, listing: folder_listing.Listing, settings: Settings
) -> Found:
  """Finds the records of a folder.

  Args:
    folder: absolute path.
    listing: of the folder.
    settings: how captions are read.

  Raises:
    ValueError: for two tables in one folder, or one that cannot be read.
  """
  masks = folder_masks.find(folder, listing.files, settings.mask)
  listing = dataclasses.replace(listing, files=masks.files)
  # Each file belongs to the table of the nearest folder above it, if any.
  tables = folder_tables.find_tables(folder, listing.files)
  listed, unlisted = folder_tables.split(listing.files, tables)
  files = set(listing.files) if tables else set()
  found = Found([], list(listing.unusable), collections.Counter(), tables, [])
  seen = set()
  for name in tables:
    read_rows(folder, name, settings, files, seen, found)
  pair(unlisted, settings, seen, found)
  account_for_listed(listed, settings, seen, found)
  folder_masks.add(masks, found.items, found.beside)
  if settings.repeats:
    folder_repeats.leave_out_others(found.items, found.unusable)
  found.beside['metadata files'] += len(tables)
  found.beside['hidden files and folders, which are not read'] += listing.hidden
  beside = {what: count for what, count in found.beside.items() if count}
  return found._replace(beside=beside)


def read_rows(
  folder: pathlib.Path,
  table_path: str,
  settings: Settings,
  files: set[str],
  seen: set[str],
  found: Found,
) -> None:
  """Adds the rows of a table to what was found.

  Args:
    folder: absolute path.
    table_path: of the table, relative to the folder.
    settings: how captions are read.
    files: all visible ones.
    seen: paths of the rows so far, to which those of this table are added.
    found: gets the rows.
  """
  base = os.path.dirname(table_path)

  def is_file(path):
    return path in files or os.path.isfile(folder / path)

  table = metadata_table.read(
    folder / table_path,
    settings.caption,
    settings.encoding,
    lambda name: folder_listing.normalise(folder, base, name) in files,
  )
  found.fields.extend(
    name for name in table.columns if name not in found.fields
  )
  found.beside['rows with commas in a text without quotes'] += table.joined
  for place, row in table.rows:
    place, name = f'{table_path}, {place}', row.get(metadata_table.FILE)
    if not isinstance(name, str) or not name.strip():
      reject(found, place, indexed.NO_IMAGE, f'{name!r:.60} is no file_name')
      continue
    path = folder_listing.normalise(folder, base, name)
    if path in seen:
      reject(found, path, indexed.DUPLICATE, place)
    elif not is_file(path):
      reject(
        found, path, indexed.NO_IMAGE, f'{place}; paths start at the table'
      )
    else:
      found.items.append(
        {
          'path': path,
          'caption': caption_of(row, settings, place, path),
          'columns': {
            name: plain(row.get(name))
            for name in ('aesthetic_score', *settings.columns)
          },
        }
      )
    seen.add(path)


def reject(found: Found, name: str, problem: int, detail: str = '') -> None:
  """Adds what cannot be used."""
  found.unusable.append(indexed.Measured(name, None, problem, detail))


def caption_of(
  row: dict[str, Any], settings: Settings, place: str, path: str
) -> list:
  """Finds the caption of a row, of the image of a path; see `as_json`."""
  if not settings.caption:
    return as_json(captions.Caption(''))
  value = captions.look_up(row, settings.caption)
  caption = captions.parse(value, settings.encoding, settings.several)
  if caption == captions.NONE and settings.repeats:
    caption = captions.parse(folder_repeats.name_of(path))
  if caption.detail:
    caption = caption._replace(detail=f'{place}: {caption.detail}')
  return as_json(caption)


def as_json(caption: captions.Caption) -> list:
  """Returns the fields of a caption, without an empty list of texts.

  An index is known by the items that it was built of: this keeps earlier ones.
  """
  *fields, texts = caption
  return [*fields, list(texts)] if texts else fields


def plain(value: Any) -> str | int | float | None:
  """Returns a value that JSON can hold."""
  return value if isinstance(value, str | int | float | None) else str(value)


def pair(
  files: Sequence[str], settings: Settings, seen: set[str], found: Found
) -> None:
  """Adds the images that no table lists, each with its caption file.

  Args:
    files: relative paths.
    settings: how captions are read.
    seen: paths of the rows of tables.
    found: gets images, and what is none.
  """
  image_files, texts, others = sort_out(files, settings.suffixes)
  used = {}  # caption files by their stem
  replaced = set()  # stems of images that a table elsewhere lists
  for image in image_files:
    stem = os.path.splitext(image)[0]
    item = {'path': image}
    if image in seen:
      replaced.add(stem)
    elif not settings.caption:
      found.items.append(item | {'caption': as_json(captions.Caption(''))})
    elif stem in texts:
      used[stem] = texts[stem][0]
      found.items.append(item | {'caption_file': used[stem]})
    elif settings.repeats and folder_repeats.name_of(image):
      caption = captions.parse(folder_repeats.name_of(image))
      found.items.append(item | {'caption': as_json(caption)})
      found.beside[folder_repeats.NAMED] += 1
    else:
      reject(found, image, indexed.NO_CAPTION)
  found.beside['caption files of them'] += len(used)
  # Captions without an image, or beside another caption.
  for stem, names in texts.items():
    if not settings.caption:
      found.beside['caption files, which are not read'] += len(names)
    elif stem in replaced and stem not in used:
      found.beside[REPLACED] += len(names)
    elif stem not in used:
      for name in names:
        reject(found, name, indexed.NO_IMAGE)
    else:
      for name in names[1:]:
        detail = f'{os.path.basename(names[0])} is read'
        reject(found, name, indexed.DUPLICATE, detail)
  account_for_others(others, image_files, found)


def sort_out(
  files: Iterable[str], caption_suffixes: Sequence[str]
) -> tuple[list[str], dict[str, list[str]], list[str]]:
  """Sorts files by suffix, those of captions in the order of preference.

  Returns:
    Images; {path without suffix: caption files, the preferred one first}; and
    other files.
  """
  image_files, texts, others = [], {}, []
  for file in files:
    stem, suffix = os.path.splitext(file)
    suffix = suffix.lower()
    if suffix in image_formats.SUFFIXES:
      image_files.append(file)
    elif suffix in caption_suffixes:
      # .TXT comes before .txt in the sorted files.
      texts.setdefault(stem, []).append(file)
    else:
      others.append(file)
  for names in texts.values():
    names.sort(
      key=lambda name: caption_suffixes.index(os.path.splitext(name)[1].lower())
    )
  return image_files, texts, others


def account_for_listed(
  files: Sequence[str], settings: Settings, seen: set[str], found: Found
) -> None:
  """Adds the files below a table's folder that it does not list."""
  rest = [file for file in files if file not in seen]
  image_files, texts, others = sort_out(rest, settings.suffixes)
  for image in image_files:
    reject(found, image, indexed.NOT_LISTED)
  found.beside[REPLACED] += sum(map(len, texts.values()))
  account_for_others(others, set(files) - set(others), found)


def account_for_others(
  others: Sequence[str], image_files: Iterable[str], found: Found
) -> None:
  """Adds files that are neither images nor captions, or belong to an image."""
  stems = (
    {os.path.splitext(image)[0] for image in image_files} if others else ()
  )
  for file in others:
    stem, suffix = os.path.splitext(file)
    if stem in stems:
      found.beside[f'{suffix.lower()} files of images, which are not read'] += 1
    else:
      reject(found, file, indexed.UNKNOWN_SUFFIX)
