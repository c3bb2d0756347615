"""Which files are images, and which images have colours that are defined."""

import io

from PIL import Image, UnidentifiedImageError

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
MAGIC = b'\x89PNG', b'\xff\xd8\xff', b'RIFF', b'GIF8'
HEAD = 512  # bytes that are looked at where a format is unknown
# Modes whose conversion to RGB would be wrong or fails.
UNDEFINED = {
  'F': 'its pixels are floats, of a range that no standard defines',
  'LAB': 'Pillow does not convert its colours, L*a*b*',
}


def check_mode(image: Image.Image) -> None:
  """Raises ValueError for an image that has no defined colours in RGB."""
  if image.mode in UNDEFINED:
    raise ValueError(
      f'{UNDEFINED[image.mode]}: save it with 8 or 16 bits per channel in RGB'
    )


def open_bytes(data: bytes) -> Image.Image:
  """Opens the bytes of a file, without decoding them.

  Raises:
    ValueError: for a format that Pillow does not know, with what the file is.
    Exception: of Pillow's decoders, for broken bytes.
  """
  try:
    return Image.open(io.BytesIO(data))
  except UnidentifiedImageError:
    raise ValueError(describe_unknown(data)) from None


def describe_unknown(data: bytes) -> str:
  """Describes a file that is no image: what it is, and what to do."""
  if data.startswith(MAGIC):
    return 'its header is broken: copy it again'
  begin = data[:HEAD].lstrip().lower()
  if not begin:
    return 'the file is empty: copy it again'
  if begin.startswith(b'version https://git-lfs'):
    return 'it is a git-lfs pointer, not the file itself: run "git lfs pull"'
  if begin.startswith((b'<!doctype html', b'<html')):
    return 'it is an HTML page: download the image itself'
  return 'Pillow knows no such format: save it as PNG, JPEG or WebP'
