"""Pictures: bytes to arrays and back, resizing, files with text, grids."""

import io
import os
import pathlib
import secrets

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin

GAP = 4  # px between the cells of a grid
GREY = 238  # of the gaps
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.gif')
ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width
TEXT = 14  # px, height of a row of captions


class UnreadableImage(ValueError):
  """A picture that is missing or broken."""

  def __init__(self, name, reason):
    super().__init__(f'{name}: not a readable picture ({reason})')
    self.name = str(name)


def decode(data, name, size=None, at_least=None, background='white'):
  """Encoded bytes to a Pillow image in RGB.

  EXIF orientation is applied, transparency laid on the background, and every
  mode (palette, grey, 16 bit, CMYK) brought to RGB; of an animation it is the
  first frame.

  Args:
    data: the bytes of a file that Pillow reads.
    name: of the picture, for the error.
    size: (height, width) that it must have, if that is known.
    at_least: (height, width) that is enough; a JPEG that is at least twice as
      large is then decoded at a half, quarter or eighth of its size.
    background: colour, as Pillow names it.

  Raises:
    UnreadableImage: for bytes that are no whole picture, one so large that
      Pillow takes it for an attack, or one of another size.
  """
  try:
    image = Image.open(io.BytesIO(data))
    if size is not None and size_of(image) != tuple(size):
      raise ValueError(f'{size_of(image)} px, but the index has {size}')
    if at_least is not None:
      h, w = at_least
      image.draft(None, (h, w) if is_turned(image) else (w, h))
    return to_rgb(ImageOps.exif_transpose(image), background)
  # Pillow's decoders raise many kinds of error on broken bytes.
  except Exception as error:
    raise UnreadableImage(name, error) from error


def is_turned(image):
  """Whether its EXIF orientation swaps height and width."""
  # Not image.getexif(), which decodes a PNG to look behind its pixels.
  return Image.Image.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)


def size_of(image):
  """(height, width) once its orientation is applied."""
  return image.size if is_turned(image) else image.size[::-1]


def to_rgb(image, background='white'):
  """Any Pillow image as RGB, transparency laid on the background."""
  if image.mode.startswith('I'):  # 16 bit grey, which Pillow would clip
    grey = np.asarray(image, np.float64) / 257
    image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    canvas = Image.new('RGBA', image.size, background)
    return Image.alpha_composite(canvas, image).convert('RGB')
  return image.convert('RGB')


def upright_size(file):
  """(height, width) after EXIF orientation, from the header alone.

  Args:
    file: a path, or an open file.

  Raises:
    UnreadableImage: where the header cannot be read, or tells of so many px
      that Pillow takes it for an attack.
  """
  try:
    with Image.open(file) as image:
      return size_of(image)
  except Exception as error:
    raise UnreadableImage(file, error) from error


def resize(image, size):
  """A Pillow image to (height, width) `size`, antialiased bicubic."""
  h, w = size
  if image.size == (w, h):
    return image
  return image.resize((w, h), Image.Resampling.BICUBIC)


def to_float(image):
  """uint8 0..255 to float32 -1..1."""
  return np.asarray(image, np.float32) * np.float32(2 / 255) - 1


def to_uint8(image):
  """float -1..1 to uint8 0..255, rounded and clipped."""
  scaled = (np.asarray(image, np.float32) + 1) * 127.5
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def save(path, image, text=None):
  """Writes a picture as PNG, making its folder; whole or not at all.

  Args:
    path: of the file, which is replaced if it exists.
    image: uint8 [h, w, 3] or float [-1, 1].
    text: {key: string} to keep in the file, where `load_text` finds it.

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
    write_whole(path, data.getvalue())
  except OSError as error:
    # By its number Python makes it the kind that it was.
    raise OSError(error.errno, error.strerror, str(path)) from error


def to_chunks(text):
  """{key: string} for Pillow: Latin-1 as tEXt, anything else as iTXt."""
  chunks = PngImagePlugin.PngInfo()
  for key, string in text.items():
    # PNG specification, third edition, section 11.3.3.1, but for its accents.
    plain = key.isascii() and key.isprintable() and key == key.strip()
    if not (plain and 0 < len(key) < 80):
      raise ValueError(
        f'a PNG keeps no text under {key!r}; name it by 1 to 79 printable '
        'ASCII characters without spaces at the ends'
      )
    if '\0' in string:
      raise ValueError(f'a PNG keeps no NUL, as the text under {key!r} has')
    chunks.add_text(key, string)
  return chunks


def write_whole(path, data):
  """Writes bytes under another name in the same folder, then renames them."""
  path = pathlib.Path(os.path.realpath(path))  # so that a link stays one
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists() and not path.is_file():
    path.write_bytes(data)  # a device takes them; a folder raises its error
    return
  # A name that no other process or thread has, and no picture's, so that
  # nobody reads what a killed run leaves.
  new = path.with_name(f'.{secrets.token_hex(8)}.new')
  try:
    with open(new, 'xb') as file:
      file.write(data)
    new.replace(path)
  finally:
    new.unlink(missing_ok=True)


def load_text(path, *keys):
  """The {key: string} that a PNG file holds.

  Args:
    path: of the file.
    *keys: that must be among them.

  Raises:
    ValueError: for a file that is broken, is no PNG, or lacks one of `keys`.
  """
  data = pathlib.Path(path).read_bytes()
  try:
    with Image.open(io.BytesIO(data)) as image:
      kind, text = image.format, getattr(image, 'text', {})
  # Pillow's decoders raise many kinds of error on broken bytes.
  except Exception as error:
    raise UnreadableImage(path, error) from error
  if kind != 'PNG':
    raise ValueError(f'{path}: a {kind} file; text is kept in PNG files only')
  if missing := set(keys) - set(text):
    raise ValueError(
      f'{path}: no text under {sorted(missing)}, but under {sorted(text)}; '
      'give the file as it was written, for editors often drop text'
    )
  return {key: str(string) for key, string in text.items()}


def grid(pictures, columns, captions=None, zoom=1):
  """Pictures of any sizes in rows, optionally captioned, as uint8 [h, w, 3].

  Args:
    pictures: sequence of uint8 [h, w, 3] or float [-1, 1].
    columns: pictures per row.
    captions: one string per picture, of as many lines; each is cut to its cell.
    zoom: whole factor by which pixels are repeated.
  """
  pictures = [np.asarray(p) for p in pictures]
  pictures = [p if p.dtype == np.uint8 else to_uint8(p) for p in pictures]
  pictures = [p.repeat(zoom, 0).repeat(zoom, 1) for p in pictures]
  captions = [text.split('\n') for text in captions or []]
  lines = max(map(len, captions), default=0)
  cell_h = max(p.shape[0] for p in pictures) + GAP + TEXT * lines
  cell_w = max(p.shape[1] for p in pictures) + GAP
  rows = -(-len(pictures) // columns)
  size = (columns * cell_w + GAP, rows * cell_h + GAP)
  canvas = Image.new('RGB', size, (GREY,) * 3)
  pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT - 4)
  for i, picture in enumerate(pictures):
    x, y = GAP + i % columns * cell_w, GAP + i // columns * cell_h
    canvas.paste(Image.fromarray(picture), (x, y))
    bottom = y + cell_h - GAP - TEXT * lines
    for number, text in enumerate(captions[i] if captions else []):
      while text and font.getlength(text) > cell_w - GAP:
        text = text[:-1]
      pen.text((x, bottom + TEXT * number), text, fill='black', font=font)
  return np.asarray(canvas)


def bars(rows, width=640):
  """A bar chart as uint8 [h, w, 3].

  Args:
    rows: [(label, value)], drawn from top to bottom.
    width: px of the longest bar.
  """
  font = ImageFont.load_default(TEXT - 4)
  left = 2 * GAP + int(max(font.getlength(label) for label, _ in rows))
  size = (left + width + 20 * GAP, len(rows) * TEXT + 2 * GAP)
  canvas = Image.new('RGB', size, (GREY,) * 3)
  pen = ImageDraw.Draw(canvas)
  most = max(value for _, value in rows) or 1
  for number, (label, value) in enumerate(rows):
    y, end = GAP + number * TEXT, left + round(width * value / most)
    pen.text((GAP, y), label, fill='black', font=font)
    pen.rectangle((left, y + 2, end, y + TEXT - 2), fill='teal')
    pen.text((end + GAP, y), f'{value:,}', fill='black', font=font)
  return np.asarray(canvas)
