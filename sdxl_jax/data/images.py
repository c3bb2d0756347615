"""Images: decoding, resizing, PNG files with text."""

import contextlib
import io
import os
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from sdxl_jax import atomic_write
from sdxl_jax.data import image_formats

ROOT = pathlib.Path(__file__).parent.parent  # of the package
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width

Size = tuple[int, int]  # (height, width) in px


class UnreadableImage(ValueError):
  """Raised for an image that is missing or broken.

  Args:
    name: path, id or open file of the image.
    reason: the error that reading it raised.
  """

  def __init__(self, name: Any, reason: Exception):
    super().__init__(f'{name}: {self.describe(reason)}')
    self.name = str(name)

  def describe(self, reason: Exception) -> str:
    """Describes what is wrong, for the message."""
    return f'not a readable image ({reason})'


class UnreadableRecord(UnreadableImage):
  """Raised where anything but the decoding of its image fails for a record.

  The message has the line that raised, since this may be an error of the
  program.
  """

  def describe(self, reason: Exception) -> str:
    frames = traceback.extract_tb(reason.__traceback__)
    ours = [f for f in frames if ROOT in pathlib.Path(f.filename).parents]
    where = f'{ours[-1].filename}, line {ours[-1].lineno}: ' if ours else ''
    return f'unreadable ({where}{type(reason).__name__}: {reason})'


@contextlib.contextmanager
def unreadable_if_raised(name: Callable[[], str]) -> Iterator[None]:
  """Raises any exception of the body as an UnreadableImage with a name.

  Args:
    name: returns the name of the record; called after an error only.
  """
  try:
    yield
  except UnreadableImage:
    raise
  # Readers and decoders raise errors of many kinds on odd data.
  except Exception as error:
    raise UnreadableRecord(name(), error) from error


@contextlib.contextmanager
def decoding(name: Any) -> Iterator[None]:
  """Raises any exception of a decoder as an UnreadableImage.

  Args:
    name: path, id or open file of the image.
  """
  try:
    yield
  # Pillow's decoders raise many kinds of error on broken bytes.
  except Exception as error:
    raise UnreadableImage(name, error) from error


def decode(
  data: bytes,
  name: str | os.PathLike,
  size: Size | None = None,
  at_least: Size | None = None,
  background: str = 'white',
) -> Image.Image:
  """Decodes the bytes of a file to a Pillow image in RGB.

  Applies the EXIF orientation, composites transparency over the background, and
  converts every mode (palette, grey, 16 bit, CMYK) to RGB. Of an animation, the
  first frame is decoded.

  Args:
    data: the bytes of a file in a format that Pillow reads.
    name: of the image, for the error.
    size: (height, width) that the image must have, if known.
    at_least: (height, width) that is enough; a JPEG at least twice as large is
      then decoded at a half, quarter or eighth of its size.
    background: colour, as Pillow names it.

  Raises:
    UnreadableImage: if the image is truncated or corrupt, has another size, or
      is larger than Pillow's limit against decompression bombs.
  """
  with decoding(name):
    return to_rgb(open_upright(data, size, at_least), background)


def decode_with_mask(
  data: bytes,
  name: str | os.PathLike,
  size: Size | None = None,
  at_least: Size | None = None,
  background: str = 'white',
) -> tuple[Image.Image, Image.Image | None]:
  """Decodes the bytes of a file as `decode`, and its transparency.

  Returns:
    The image in RGB, over the background; and its alpha channel in grey, None
    of an image without transparency.

  Raises:
    UnreadableImage: as `decode` does.
  """
  with decoding(name):
    image = open_upright(data, size, at_least)
    return to_rgb(image, background), image_formats.alpha_of(image)


def open_upright(
  data: bytes, size: Size | None, at_least: Size | None
) -> Image.Image:
  """Opens the bytes of a file in the mode of the file, as `decode` does."""
  image = image_formats.open_convertible(io.BytesIO(data))
  # An index older than the file would give wrong micro-conditioning.
  if size is not None and size_of(image) != tuple(size):
    raise ValueError(f'{size_of(image)} px, but the index has {size}')
  # Pillow reduces a JPEG while decoding; other formats ignore this.
  if at_least is not None:
    h, w = at_least
    image.draft(None, (h, w) if is_turned(image) else (w, h))
  return ImageOps.exif_transpose(image)


def decode_with_alpha(
  data: bytes, name: str | os.PathLike
) -> tuple[Image.Image, np.ndarray | None]:
  """Decodes the bytes of a file to its colours and its transparency.

  Args:
    data: the bytes of a file in a format that Pillow reads.
    name: of the image, for the error.

  Returns:
    The image in RGB as it is stored, also where it is transparent, with the
    EXIF orientation applied; and uint8 [h, w], 0 where it is transparent to 255
    where it is opaque, or None without transparency.

  Raises:
    UnreadableImage: as `decode` does.
  """
  with decoding(name):
    image = image_formats.open_convertible(io.BytesIO(data))
    image = ImageOps.exif_transpose(image)
    alpha = image_formats.alpha_of(image)
    if alpha is None:
      return to_rgb(image), None
    return image_formats.with_alpha(image).convert('RGB'), np.asarray(alpha)


def is_turned(image: Image.Image) -> bool:
  """Checks whether the EXIF orientation swaps height and width."""
  # Not image.getexif(), which decodes a PNG to find EXIF data after its pixels.
  return Image.Image.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)


def size_of(image: Image.Image) -> Size:
  """Returns (height, width) after EXIF orientation."""
  return image.size if is_turned(image) else image.size[::-1]


def to_rgb(image: Image.Image, background: str = 'white') -> Image.Image:
  """Converts any Pillow image to RGB, composited over the background."""
  if image.mode.startswith('I'):  # 16 bit grey, which Pillow would clip
    grey = np.asarray(image, np.float64) / 257
    image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
  # Also of palettes with a transparent colour.
  if image.has_transparency_data:
    image = image.convert('RGBA')
    canvas = Image.new('RGBA', image.size, background)
    return Image.alpha_composite(canvas, image).convert('RGB')
  return image.convert('RGB')


def upright_size(file: BinaryIO) -> Size:
  """Reads (height, width) after EXIF orientation, from the header alone.

  Args:
    file: open at its beginning.

  Raises:
    UnreadableImage: if the header cannot be read, or has a size above Pillow's
      limit against decompression bombs.
  """
  with decoding(file), image_formats.open_convertible(file) as image:
    return size_of(image)


def resize(image: Image.Image, size: Size) -> Image.Image:
  """Resizes to (height, width), antialiased bicubic."""
  h, w = size
  if image.size == (w, h):
    return image
  return image.resize((w, h), Image.Resampling.BICUBIC)


def to_float(image: np.ndarray) -> np.ndarray:
  """Converts uint8 in 0..255 to float32 in -1..1."""
  return np.asarray(image, np.float32) * np.float32(2 / 255) - 1


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Converts float in -1..1 to uint8 in 0..255, rounded and clipped."""
  scaled = (np.asarray(image, np.float32) + 1) * 127.5
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def enlarge(image: np.ndarray, zoom: int) -> np.ndarray:
  """Repeats the pixels of [h, w, ...] by a whole factor in both directions."""
  return image.repeat(zoom, 0).repeat(zoom, 1)


def save(
  path: str | os.PathLike,
  image: np.ndarray,
  text: dict[str, str] | None = None,
) -> None:
  """Writes an image as PNG atomically, and makes its folder.

  Args:
    path: of the file, which is replaced if it exists.
    image: uint8 [h, w, 3] or float in [-1, 1].
    text: {key: string} to store in the file, for `load_text`.

  Raises:
    ValueError: for a key or string that a PNG cannot hold.
    OSError: naming `path`, if it cannot be written.
  """
  image = np.asarray(image)
  if image.dtype != np.uint8:
    image = to_uint8(image)
  data = io.BytesIO()
  Image.fromarray(image).save(data, format='PNG', pnginfo=to_chunks(text or {}))
  try:
    atomic_write.write_bytes(path, data.getvalue())
  except OSError as error:
    # From its number Python makes the same subclass of OSError.
    raise OSError(error.errno, error.strerror, str(path)) from error


def to_chunks(text: dict[str, str]) -> PngImagePlugin.PngInfo:
  """Converts {key: string} for Pillow: Latin-1 to tEXt, other text to iTXt."""
  chunks = PngImagePlugin.PngInfo()
  for key, string in text.items():
    # PNG specification, third edition, section 11.3.3.1, without its accents.
    plain = key.isascii() and key.isprintable() and key == key.strip()
    if not (plain and 0 < len(key) < 80):
      raise ValueError(
        f'a PNG cannot hold text under {key!r}; choose a key of 1 to 79 '
        'printable ASCII characters without spaces at the ends'
      )
    if '\0' in string:
      raise ValueError(
        f'a PNG cannot hold a NUL, which is in the text under {key!r}'
      )
    chunks.add_text(key, string)
  return chunks


def load_text(path: str | os.PathLike) -> dict[str, str]:
  """Reads the {key: string} of a PNG file.

  Raises:
    ValueError: for a file that is broken, or is no PNG.
  """
  data = pathlib.Path(path).read_bytes()
  with decoding(path), image_formats.open_bytes(data) as image:
    file_format, text = image.format, getattr(image, 'text', {})
  if file_format != 'PNG':
    raise ValueError(
      f'{path}: a {file_format} file; only PNG files hold the text'
    )
  return {key: str(string) for key, string in text.items()}
