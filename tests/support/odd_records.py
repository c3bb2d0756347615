"""Oddities of records: of their images, captions and scores."""

import functools
import struct
import zlib

import numpy as np
from PIL import Image

from sdxl_jax.data.sources import indexed as i
from tests.support import datasets, odd_boxes
from tests.support.odd_boxes import PNG
from tests.support.odd_registry import (
  ALL,
  BYTES,
  JSON,
  SCORED,
  TABLES,
  TARS,
  oddity,
)


@functools.cache
def image_file(kind):
  """Returns (bytes, suffix) of an image of an odd, but readable kind."""
  pixels = datasets.ramp(8, 12)
  rotated = Image.Exif()
  rotated[0x0112] = 6
  rgb = Image.fromarray(pixels)
  return {
    'jpeg': lambda: (datasets.encode(rgb, 'JPEG'), '.jpg'),
    'webp': lambda: (datasets.encode(rgb, 'WEBP'), '.webp'),
    'tiff': lambda: (datasets.encode(rgb, 'TIFF'), '.tif'),
    'bmp': lambda: (datasets.encode(rgb, 'BMP'), '.bmp'),
    'ppm': lambda: (datasets.encode(rgb, 'PPM'), '.ppm'),
    'cmyk': lambda: (datasets.encode(rgb.convert('CMYK'), 'JPEG'), '.jpeg'),
    'palette': lambda: (datasets.encode(rgb.convert('P'), 'GIF'), '.gif'),
    'alpha': lambda: (datasets.encode(rgb.convert('RGBA')), '.png'),
    'deep': lambda: (
      datasets.encode(Image.fromarray(np.zeros((8, 8), np.uint16))),
      '.png',
    ),
    'turned': lambda: (datasets.encode(rgb, 'JPEG', exif=rotated), '.jpg'),
    'moving': lambda: (
      datasets.encode(rgb, 'WEBP', save_all=True, append_images=[rgb]),
      '.webp',
    ),
    'other suffix': lambda: (datasets.encode(rgb, 'JPEG'), '.png'),
  }[kind]()


READABLE = (
  'jpeg',
  'webp',
  'tiff',
  'bmp',
  'ppm',
  'cmyk',
  'palette',
  'alpha',
  'deep',
  'turned',
  'moving',
  'other suffix',
)


@functools.cache
def claim_size(width, height):
  """Returns a PNG whose header has another size than its pixels."""
  header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return PNG[:12] + header + struct.pack('>I', zlib.crc32(header)) + PNG[33:]


@functools.cache
def float_tiff():
  return datasets.encode(Image.fromarray(np.zeros((8, 8), np.float32)), 'TIFF')


# Images.


@oddity(*ALL)
def plain(box, name):
  box.record(name)


@oddity(*ALL)
def image_of_another_kind(box, name):
  data, suffix = image_file(READABLE[box.rng.integers(len(READABLE))])
  box.record(name, image=data, suffix=suffix)


@oddity(*ALL)
def empty_image(box, name):
  box.record(name, image=b'', problem=i.UNREADABLE)


@oddity(*ALL)
def web_page_as_image(box, name):
  box.record(name, image=b'<html>404 not found</html>', problem=i.UNREADABLE)


@oddity(*ALL)
def cut_header(box, name):
  box.record(name, image=PNG[:20], problem=i.UNREADABLE)


@oddity(*ALL)
def no_pixels(box, name):
  box.record(name, image=claim_size(0, 8), problem=i.UNREADABLE)


@oddity(*ALL)
def decompression_bomb(box, name):
  box.record(name, image=claim_size(30_000, 30_000), problem=i.TOO_LARGE)


@oddity(*ALL)
def floats(box, name):
  box.record(name, image=float_tiff(), suffix='.tiff', problem=i.UNREADABLE)


@oddity(*ALL)
def extreme_aspect(box, name):
  box.record(name, image=claim_size(1_500_000, 2), problem=odd_boxes.RESIZE)


@oddity(*ALL)
def tiny(box, name):
  box.record(name, image=claim_size(1, 1), problem=odd_boxes.SIDE)


# Captions.


@oddity(*BYTES)
def byte_order_mark(box, name):
  box.record(name, text='marked'.encode('utf-8-sig'), caption='marked')


@oddity(*BYTES)
def utf_16(box, name):
  box.record(name, text='犬 16'.encode('utf-16'), caption='犬 16')


@oddity(*BYTES)
def utf_32(box, name):
  box.record(name, text='犬 32'.encode('utf-32'), caption='犬 32')


@oddity(*BYTES)
def latin_1(box, name):
  box.record(name, text='café'.encode('latin-1'), problem=i.BAD_ENCODING)


@oddity(*BYTES)
def utf_16_without_mark(box, name):
  box.record(name, text='dog'.encode('utf-16-le'), problem=i.BAD_ENCODING)


@oddity(*ALL)
def empty_caption(box, name):
  box.record(name, text=' \n', problem=i.NO_CAPTION)


@oddity(*ALL)
def no_caption(box, name):
  box.record(name, text=None, problem=i.NO_CAPTION)


@oddity(*ALL)
def line_ends_in_caption(box, name):
  box.record(name, text='a\u2028b\x85c,"d"\ne ', caption='a\u2028b\x85c,"d"\ne')


@oddity(*ALL)
def other_alphabets(box, name):
  box.record(name, text='赤い狐 и лиса 🦊')


@oddity('folder', 'tar')
def document_as_caption(box, name):
  box.record(name, text='word ' * 250_000, problem=i.BAD_CAPTION)


@oddity(*JSON)
def half_a_character(box, name):
  box.record(name, text='a dog \ud83d', problem=i.BAD_ENCODING)


@oddity(*JSON, 'parquet lists')
def several_captions(box, name):
  box.record(name, text=[f'{name} first', 'second'], caption=f'{name} first')
  box.several += 1


@oddity(*JSON, 'parquet lists')
def null_among_captions(box, name):
  box.record(name, text=[None, ' ', name], caption=name)


@oddity(*JSON, 'parquet lists')
def empty_list(box, name):
  box.record(name, text=[], problem=i.NO_CAPTION)


@oddity(*JSON)
def number_as_caption(box, name):
  box.record(name, text=3, problem=i.BAD_CAPTION)


@oddity(*JSON)
def nan_as_caption(box, name):
  box.record(name, text=float('nan'), problem=i.NO_CAPTION)


@oddity(*JSON)
def struct_as_caption(box, name):
  box.record(name, text={'en': 'a dog'}, problem=i.BAD_CAPTION)


# Scores.


@oddity(*SCORED)
def nan_score(box, name):
  box.record(name, score=float('nan'))


@oddity(*SCORED)
def no_score(box, name):
  box.record(name, score=None)


@oddity(*SCORED)
def infinite_score(box, name):
  box.record(name, score=float('inf'), problem=i.BAD_SCORE)


@oddity(*TABLES, *TARS)
def score_in_words(box, name):
  box.record(name, score='good', problem=i.BAD_SCORE)


@oddity(*TABLES, *TARS)
def score_as_text(box, name):
  box.record(name, score='6.5')
