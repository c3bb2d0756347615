"""Which files are images, and which images have colours that are defined."""

import io
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from sdxl_jax.data import foreign_files

# Formats that Pillow lists, but only identifies, or reads by other programs.
NOT_READ = ('BUFR', 'EPS', 'GRIB', 'HDF5', 'IPTC', 'MPEG', 'WMF')
# Pillow tries formats in the order in which it loads them: first the common
# ones, then all others, some of which it recognises only by opening them.
Image.preinit()
# Of all formats that Pillow reads, those of photographs first.
COMMON = ('.jpg', '.jpeg', '.png', '.webp', '.gif')
SUFFIXES = COMMON + tuple(
  sorted(
    suffix
    for suffix, format_name in Image.registered_extensions().items()
    if format_name in Image.OPEN
    and format_name not in NOT_READ
    and suffix not in COMMON
  )
)
# The first bytes of common formats.
MAGIC = b'\x89PNG', b'\xff\xd8\xff', b'GIF8'
# Modes whose conversion to RGB would be wrong or fails.
UNDEFINED = {
  'F': 'its pixels are floats, of a range that no standard defines',
  'LAB': 'Pillow does not convert its colours, L*a*b*',
}


class UnknownFormat(ValueError):
  """Raised for a file in no format that Pillow knows."""


def check_mode(image: Image.Image) -> None:
  """Raises ValueError for an image that has no defined colours in RGB."""
  if image.mode in UNDEFINED:
    raise ValueError(
      f'{UNDEFINED[image.mode]}: save it with 8 or 16 bits per channel in RGB'
    )


def open_bytes(data: bytes) -> Image.Image:
  """Opens the bytes of a file, see `open_file`."""
  return open_file(io.BytesIO(data))


def open_file(file: BinaryIO) -> Image.Image:
  """Opens an image without decoding it.

  Args:
    file: open at its beginning.

  Raises:
    UnknownFormat: with what the file is.
    Exception: of Pillow's decoders, for broken bytes.
  """
  try:
    return Image.open(file)
  except UnidentifiedImageError:
    file.seek(0)
    head = file.read(foreign_files.HEAD)
    raise UnknownFormat(describe_unknown(head)) from None


def open_convertible(file: BinaryIO) -> Image.Image:
  """Opens an image that has defined colours in RGB; as `open_file` else."""
  image = open_file(file)
  check_mode(image)
  return image


def describe_unknown(head: bytes) -> str:
  """Describes a file that is no image: what it is, and what to do."""
  is_webp = head.startswith(b'RIFF') and head[8:12] == b'WEBP'  # or WAV, AVI
  if is_webp or head.startswith(MAGIC):
    return 'its header is broken: copy it again'
  if not head:
    return 'the file is empty: copy it again'
  known = foreign_files.describe(head, 'image')
  return known or 'Pillow knows no such format: save it as PNG, JPEG or WebP'


def alpha_of(image: Image.Image) -> Image.Image | None:
  """Returns the alpha channel of any Pillow image, None if it has none."""
  if not image.has_transparency_data or image.mode.startswith('I'):
    return None
  return with_alpha(image).getchannel('A')


def with_alpha(image: Image.Image) -> Image.Image:
  """Converts an image with transparency to RGBA, its colours as stored."""
  if image.mode == 'La':  # Pillow converts it to its own kind alone
    image = image.convert('LA')
  return image.convert('RGBA')
