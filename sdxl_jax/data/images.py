"""Pictures: bytes to arrays and back, resizing, grids."""

import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 4  # px between the cells of a grid
GREY = 238  # of the gaps
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width
TEXT = 14  # px, height of a row of captions


class UnreadableImage(ValueError):
  """A picture that is missing or broken."""

  def __init__(self, name, reason):
    super().__init__(f'{name}: not a readable picture ({reason})')
    self.name = str(name)


def decode(data, name):
  """Encoded bytes to uint8 [h, w, 3].

  EXIF orientation is applied, transparency laid on white, and every mode
  (palette, grey, 16 bit, CMYK) brought to RGB.

  Args:
    data: the bytes of a file that Pillow reads.
    name: of the picture, for the error.

  Raises:
    UnreadableImage: for bytes that are no whole picture.
  """
  try:
    image = Image.open(io.BytesIO(data))
    return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
  # Pillow's decoders raise many kinds of error on broken bytes.
  except Exception as error:
    raise UnreadableImage(name, error) from error


def to_rgb(image):
  """Any Pillow image as RGB, transparency laid on white."""
  if image.mode.startswith('I'):  # 16 bit grey, which Pillow would clip
    grey = np.asarray(image, np.float64) / 257
    image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, 'white')
    return Image.alpha_composite(white, image).convert('RGB')
  return image.convert('RGB')


def upright_size(path):
  """(height, width) of a file after its EXIF orientation, from the header.

  Raises:
    UnreadableImage: where the header cannot be read.
  """
  try:
    with Image.open(path) as image:
      w, h = image.size
      # Not image.getexif(), which decodes a PNG to look behind its pixels.
      turned = Image.Image.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)
  except Exception as error:
    raise UnreadableImage(path, error) from error
  return (w, h) if turned else (h, w)


def resize(image, size):
  """uint8 [h, w, 3] to (height, width) `size`, antialiased bicubic."""
  if image.shape[:2] == tuple(size):
    return image
  h, w = size
  resized = Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC)
  return np.asarray(resized)


def to_float(image):
  """uint8 0..255 to float32 -1..1."""
  return np.asarray(image, np.float32) * np.float32(2 / 255) - 1


def to_uint8(image):
  """float -1..1 to uint8 0..255, rounded and clipped."""
  scaled = (np.asarray(image, np.float32) + 1) * 127.5
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def save(path, image):
  """Writes uint8 [h, w, 3] or float [-1, 1] as PNG, making its folder."""
  image = np.asarray(image)
  if image.dtype != np.uint8:
    image = to_uint8(image)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, format='PNG')


def grid(pictures, columns, captions=None, zoom=1):
  """Pictures of any sizes in rows, optionally captioned, as uint8 [h, w, 3].

  Args:
    pictures: sequence of uint8 [h, w, 3] or float [-1, 1].
    columns: pictures per row.
    captions: one string per picture, cut to its cell.
    zoom: whole factor by which pixels are repeated.
  """
  pictures = [np.asarray(p) for p in pictures]
  pictures = [p if p.dtype == np.uint8 else to_uint8(p) for p in pictures]
  pictures = [p.repeat(zoom, 0).repeat(zoom, 1) for p in pictures]
  cell_h = max(p.shape[0] for p in pictures) + GAP + (TEXT if captions else 0)
  cell_w = max(p.shape[1] for p in pictures) + GAP
  rows = -(-len(pictures) // columns)
  size = (columns * cell_w + GAP, rows * cell_h + GAP)
  canvas = Image.new('RGB', size, (GREY,) * 3)
  pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT - 4)
  for i, picture in enumerate(pictures):
    x, y = GAP + i % columns * cell_w, GAP + i // columns * cell_h
    canvas.paste(Image.fromarray(picture), (x, y))
    if captions:
      text = captions[i]
      while text and font.getlength(text) > cell_w - GAP:
        text = text[:-1]
      bottom = y + cell_h - GAP - TEXT
      pen.text((x, bottom), text, fill='black', font=font)
  return np.asarray(canvas)
