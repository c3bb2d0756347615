"""Writes small datasets full of oddities, each with what must be counted of it.

An oddity is a function that adds records or other things to a box, in which a
dataset is written, and notes what a source must make of them. It is written for
the kinds of boxes that can hold it.
"""

import functools
import os
import pathlib
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from sdxl_jax.data.sources import indexed as i
from tests.support import datasets, odd_boxes

FOLDERS, TABLES = ('folder',), ('jsonl', 'csv')
TARS = ('tar', 'tar json')
PARQUETS = ('parquet text', 'parquet bytes', 'parquet lists')
FILES = (*FOLDERS, *TABLES)
ALL = (*FILES, *TARS, *PARQUETS)
# Boxes whose captions are bytes, and those whose captions are JSON.
BYTES = ('folder', 'tar', 'parquet bytes')
JSON = ('jsonl', 'tar json')
SCORED = (*TABLES, *TARS, *PARQUETS)

ODDITIES = []  # (name, kinds of boxes, function)
PNG = odd_boxes.PNG


def oddity(*kinds):
  """Registers a function for kinds of boxes."""

  def register(function):
    ODDITIES.append((function.__name__, kinds, function))
    return function

  return register


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


# Names and folders.


@oddity(*FILES, *TARS)
def upper_case_suffix(box, name):
  box.record(name, suffix='.PNG', upper=True)


@oddity(*FILES, *TARS)
def dots_in_the_name(box, name):
  box.record(f'{name}.v2.final')


@oddity(*FILES, *TARS)
def spaces_and_accents(box, name):
  box.record(f'{name} é 犬')


@oddity('folder', 'tar')
def name_in_another_encoding(box, name):
  box.record(name + os.fsdecode(b'\xe9'))


@oddity(*FILES, *TARS)
def deeper_folder(box, name):
  box.record(f'{name}/er/{name}')


@oddity('folder')
def linked_files(box, name):
  for suffix, data in (('.png', PNG), ('.txt', b'linked')):
    os.symlink(box.away(name + suffix, data), box.folder / (name + suffix))
  box.expect(0, 'linked')
  box.beside += 1


@oddity('folder')
def linked_folder(box, name):
  for number in range(2):
    box.away(f'{name}/{number}.png', PNG)
    box.away(f'{name}/{number}.txt', b'far away')
    box.expect(0, 'far away')
  os.symlink(box.away_folder / name, box.folder / name)
  box.beside += 2


@oddity('folder', *TABLES)
def broken_link(box, name):
  os.symlink(box.folder / 'nowhere.png', box.folder / f'{name}.png')
  box.expect(i.LINK)


@oddity('folder', *TABLES)
def link_to_itself(box, name):
  os.symlink(f'{name}.png', box.folder / f'{name}.png')
  box.expect(i.LINK)


@oddity('folder', *TABLES)
def link_to_the_folder_above(box, name):
  (box.folder / name).mkdir()
  os.symlink('..', box.folder / name / 'up')
  box.expect(i.LINK)


@oddity(*FILES)
def hidden_file(box, name):
  box.write(f'.{name}.png', PNG)
  box.beside += 1


@oddity(*FILES)
def unknown_suffix(box, name):
  box.write(f'{name}.psd.bak', PNG)
  box.expect(i.UNKNOWN_SUFFIX)


@oddity(*FILES)
def file_beside_an_image(box, name):
  box.record(name)
  box.write(f'{name}.npz', b'')
  box.beside += 1


@oddity('folder')
def caption_without_image(box, name):
  box.write(f'{name}.txt', b'lonely')
  box.expect(i.NO_IMAGE)


@oddity('folder')
def two_caption_files(box, name):
  box.record(name)
  box.write(f'{name}.caption', b'not read')
  box.expect(i.DUPLICATE)


@oddity('folder')
def other_caption_file(box, name):
  box.write(f'{name}.png', PNG)
  box.write(f'{name}.caption', b'of the other suffix')
  box.expect(0, 'of the other suffix')
  box.beside += 1


@oddity('folder')
def two_images_of_a_caption(box, name):
  box.record(name, text='shared')
  box.write(f'{name}.jpg', image_file('jpeg')[0])
  box.expect(0, 'shared')


# Tables.


@oddity(*TABLES)
def row_without_image(box, name):
  box.row(f'{name}.png', 'missing')
  box.expect(i.NO_IMAGE)


@oddity(*TABLES)
def row_without_a_name(box, name):
  box.row('', 'nameless')
  box.expect(i.NO_IMAGE)


@oddity(*TABLES)
def image_twice(box, name):
  box.record(name)
  box.row(f'./{name}.png', 'again')
  box.expect(i.DUPLICATE)


@oddity(*TABLES)
def image_without_row(box, name):
  box.write(f'{name}.png', PNG)
  box.expect(i.NOT_LISTED)


@oddity('jsonl')
def caption_file_under_a_table(box, name):
  box.record(name)
  box.write(f'{name}.txt', b'not read')
  box.beside += 1


@oddity('csv')
def commas_without_quotes(box, name):
  box.write(f'{name}.png', PNG)
  box.lines.append(f'{name}.png,5,1girl, solo, red dress')
  box.expect(0, '1girl, solo, red dress')
  box.joined += 1


@oddity('csv')
def table_of_windows(box, name):
  box.record(name)
  box.line_end, box.encoding = '\r\n', 'utf-8-sig'


# Tars.


@oddity(*TARS)
def key_up_to_the_first_dot(box, name):
  """The image has a longer name than its caption, as webdataset allows."""
  box.member(f'{name}.photo.png', PNG)
  box.texts(name, 'short', 5.0)
  box.expect(0, 'short')


@oddity(*TARS)
def two_images_of_a_key(box, name):
  """A guess whose caption it is, so that neither is used."""
  box.member(f'{name}.input.png', PNG)
  box.member(f'{name}.target.png', PNG)
  box.texts(name, 'of which?', 5.0)
  box.expect(i.NO_CAPTION)
  box.expect(i.NO_CAPTION)
  box.expect(i.NO_IMAGE)


@oddity(*TARS)
def record_twice(box, name):
  box.record(name)
  box.member(f'{name}.png', PNG)
  box.texts(name, 'again', 5.0)
  box.expect(i.DUPLICATE)


@oddity(*TARS)
def second_image(box, name):
  box.record(name)
  box.member(f'{name}.jpg', image_file('jpeg')[0])
  box.expect(i.DUPLICATE)


@oddity(*TARS)
def members_beside_an_image(box, name):
  box.record(name)
  box.member(f'{name}.npy', b'')
  box.member(f'{name}.cls', b'3')
  box.beside += 2


@oddity(*TARS)
def unknown_member(box, name):
  box.member(f'{name}.raw', PNG)
  box.texts(name, 'of a raw image', 5.0)
  box.expect(i.UNKNOWN_SUFFIX)


@oddity(*TARS)
def texts_without_image(box, name):
  box.texts(name, 'lonely', 5.0)
  box.expect(i.NO_IMAGE)


@oddity(*TARS)
def links_in_the_tar(box, name):
  box.record(f'{name}/pool', text='pooled')
  suffixes = ('.png', *(s for s in ('.txt', '.json') if s in box.suffixes))
  for suffix in suffixes:
    box.link(f'{name}/s{suffix}', tarfile.SYMTYPE, f'./pool{suffix}')
    box.link(f'{name}.hard{suffix}', tarfile.LNKTYPE, f'{name}/pool{suffix}')
  box.expect(0, 'pooled')
  box.expect(0, 'pooled')


@oddity(*TARS)
def links_to_nowhere(box, name):
  box.link(f'{name}.png', tarfile.SYMTYPE, '/data/away.png')
  box.texts(name, 'away', 5.0)
  box.expect(i.LINK)


@oddity(*TARS)
def links_in_a_circle(box, name):
  for this, other in ('ab', 'ba'):
    box.link(f'{name}{this}.png', tarfile.SYMTYPE, f'{name}{other}.png')
    box.texts(name + this, 'around', 5.0)
    box.expect(i.LINK)


@oddity(*TARS)
def sparse_member(box, name):
  size = str(len(PNG))
  headers = {'name': f'{name}.png', 'size': size, 'map': f'0,{size}'}
  headers = {f'GNU.sparse.{key}': value for key, value in headers.items()}
  box.member(f'{name}.png', PNG, headers=headers)
  box.texts(name, 'scattered', 5.0)
  box.expect(i.UNREADABLE)


@oddity(*TARS)
def pipe(box, name):
  box.link(f'{name}.png', tarfile.FIFOTYPE, '')
  box.texts(name, 'a pipe', 5.0)
  box.expect(i.UNREADABLE)


@oddity(*TARS)
def long_name(box, name):
  box.record(f'{name}/' + 'n' * 150)


@oddity(*TARS)
def broken_json(box, name):
  rubbish = (b'{oops', b'[1]', b'', b'null', b'[' * 5000)
  box.member(f'{name}.png', PNG)
  box.member(f'{name}.txt', b'of the member txt')
  box.member(f'{name}.json', rubbish[box.rng.integers(len(rubbish))])
  box.expect(i.BAD_JSON)


# Parquet files.


@oddity(*PARQUETS)
def null_image(box, name):
  box.row({'bytes': None, 'path': None}, name)
  box.expect(i.NO_IMAGE)


@oddity(*PARQUETS)
def null_row(box, name):
  box.row(None, name)
  box.expect(i.NO_IMAGE)


@oddity(*PARQUETS)
def path_of_an_image(box, name):
  (box.folder / 'images').mkdir(exist_ok=True)
  (box.folder / 'images' / f'{name}.png').write_bytes(PNG)
  box.row({'bytes': None, 'path': f'images/{name}.png'}, name)
  box.expect(0, name)


@oddity(*PARQUETS)
def path_of_nothing(box, name):
  box.row({'bytes': None, 'path': f'{name}.png'}, name)
  box.expect(i.NO_IMAGE)


@oddity(*PARQUETS)
def url_of_an_image(box, name):
  box.row({'bytes': None, 'path': f'https://example.org/{name}'}, name)
  box.expect(i.NO_IMAGE)


def write(folder: pathlib.Path, number: int) -> odd_boxes.Box:
  """Writes a dataset of random oddities, the same for a number.

  Returns:
    The closed box, with what must be counted.
  """
  rng = np.random.default_rng([20_24, number])
  kind = ALL[number % len(ALL)]
  box = odd_boxes.BOXES[kind](folder, kind, rng)
  fitting = [o for o in ODDITIES if kind in o[1]]
  # Each oddity in turn, so that all are written, and some that repeat.
  round_number = number // len(ALL)
  turn = [fitting[(3 * round_number + k) % len(fitting)] for k in range(3)]
  chosen = rng.choice(len(fitting), rng.integers(3, 9))
  box.record('0-plain')
  for place, (_, _, function) in enumerate(
    turn + [fitting[k] for k in chosen], 1
  ):
    function(box, f'{place:02d}-{function.__name__}')
    box.oddities[function.__name__] += 1
  box.close()
  return box
