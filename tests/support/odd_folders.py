"""Oddities of folders: names, links, other files, rows of tables."""

import os

from sdxl_jax.data.sources import indexed as i
from tests.support.odd_boxes import PNG
from tests.support.odd_records import image_file
from tests.support.odd_registry import FILES, TABLES, TARS, oddity

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
