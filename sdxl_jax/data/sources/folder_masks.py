"""Finds the masks of a folder of images: next to them, or in another folder."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from sdxl_jax.data import image_formats
from sdxl_jax.data.sources import folder_listing


class Masks(NamedTuple):
  """What was found, and what it leaves."""

  paths: dict[str, str]  # {path of the image without suffix: path of the mask}
  files: list[str]  # of the folder, but for the masks


def find(folder: pathlib.Path, files: Sequence[str], mask: str) -> Masks:
  """Finds the masks of a folder.

  Args:
    folder: absolute path.
    files: below it, relative.
    mask: end of the name of each mask beside its image, which ends in a suffix
      of images, such as '.mask.png'; otherwise a folder, relative to the other
      one, where masks have the paths of their images, with any such suffix;
      '': there are none.

  Raises:
    FileNotFoundError: if there is no such folder.
  """
  if not mask:
    return Masks({}, list(files))
  if os.path.splitext(f'x{mask}')[1].lower() in image_formats.SUFFIXES:
    found = [f for f in files if f.lower().endswith(mask.lower())]
    paths = {f[: -len(mask)]: f for f in found}
    return Masks(paths, [f for f in files if f not in {*found}])
  # A folder of masks, perhaps inside the folder of the images.
  place = os.path.normpath(folder / os.path.expanduser(mask))
  if not os.path.isdir(place):
    raise FileNotFoundError(
      f'config.data.folder.mask is {mask!r}, and {place} is no folder: name '
      "one, or the suffix of mask files next to the images, '.mask.png'"
    )
  relative = os.path.relpath(place, folder)
  paths = {
    os.path.splitext(f)[0]: os.path.join(relative, f)
    for f in folder_listing.list_files(pathlib.Path(place)).files
    if os.path.splitext(f)[1].lower() in image_formats.SUFFIXES
  }
  return Masks(paths, [f for f in files if not f.startswith(f'{relative}/')])


def add(
  masks: Masks, items: Sequence[dict[str, Any]], beside: dict[str, int]
) -> None:
  """Adds `mask`, a path, to the items of images that have one.

  Args:
    masks: of `find`.
    items: of the folder, see folder_records.
    beside: {what: count} of files, a Counter, which gets the masks.
  """
  used = set()
  for item in items:
    stem = os.path.splitext(item['path'])[0]
    if stem in masks.paths:
      item['mask'] = masks.paths[stem]
      used.add(stem)
  beside['masks of images'] += len(used)
  beside['masks without an image'] += len(masks.paths) - len(used)
