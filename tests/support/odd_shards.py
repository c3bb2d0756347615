"""Oddities of tars and parquet files."""

import tarfile

from sdxl_jax.data.sources import indexed as i
from tests.support.odd_boxes import PNG
from tests.support.odd_records import image_file
from tests.support.odd_registry import PARQUETS, TARS, oddity

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
