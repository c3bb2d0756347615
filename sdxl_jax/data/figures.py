"""Figures of images and numbers: grids with captions, and bar charts."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sdxl_jax.data import images

GAP = 4  # px between the cells of a grid
GREY = 238  # 0..255, of the gaps
LINE = 14  # px, height of a line of text


def grid(
  cells: Sequence[np.ndarray],
  columns: int,
  captions: Sequence[str] | None = None,
  zoom: int = 1,
) -> np.ndarray:
  """Arranges images of any sizes in rows, as uint8 [h, w, 3].

  Args:
    cells: sequence of uint8 [h, w, 3] or float in [-1, 1].
    columns: images per row.
    captions: one string per image, of one or more lines; a line is truncated to
      the width of its cell.
    zoom: integer factor by which pixels are repeated.
  """
  # uint8, enlarged.
  cells = [np.asarray(cell) for cell in cells]
  cells = [x if x.dtype == np.uint8 else images.to_uint8(x) for x in cells]
  cells = [images.enlarge(x, zoom) for x in cells]
  captions = [text.split('\n') for text in captions or []]
  # All have the size of the largest image and caption.
  text_h = LINE * max(map(len, captions), default=0)
  cell_h = max(x.shape[0] for x in cells) + GAP + text_h
  cell_w = max(x.shape[1] for x in cells) + GAP
  rows = -(-len(cells) // columns)
  size = (columns * cell_w + GAP, rows * cell_h + GAP)
  canvas = Image.new('RGB', size, (GREY,) * 3)
  pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(LINE - 4)
  # Each image at the top of its cell, each caption at the bottom.
  for i, image in enumerate(cells):
    x, y = GAP + i % columns * cell_w, GAP + i // columns * cell_h
    canvas.paste(Image.fromarray(image), (x, y))
    bottom = y + cell_h - GAP - text_h
    for number, text in enumerate(captions[i] if captions else []):
      while text and font.getlength(text) > cell_w - GAP:
        text = text[:-1]
      pen.text((x, bottom + LINE * number), text, fill='black', font=font)
  return np.asarray(canvas)


def bars(rows: Sequence[tuple[str, int]], width: int = 640) -> np.ndarray:
  """Renders a bar chart as uint8 [h, w, 3].

  Args:
    rows: [(label, value)], from top to bottom.
    width: px of the longest bar.
  """
  font = ImageFont.load_default(LINE - 4)
  # Labels to the left of the bars, values to the right.
  left = 2 * GAP + int(max(font.getlength(label) for label, _ in rows))
  size = (left + width + 20 * GAP, len(rows) * LINE + 2 * GAP)
  canvas = Image.new('RGB', size, (GREY,) * 3)
  pen = ImageDraw.Draw(canvas)
  largest = max(value for _, value in rows) or 1
  for number, (label, value) in enumerate(rows):
    y, end = GAP + number * LINE, left + round(width * value / largest)
    pen.text((GAP, y), label, fill='black', font=font)
    pen.rectangle((left, y + 2, end, y + LINE - 2), fill='teal')
    pen.text((end + GAP, y), f'{value:,}', fill='black', font=font)
  return np.asarray(canvas)
