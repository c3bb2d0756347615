"""Tests that a cache follows its images and captions, and costs no more."""

import pathlib
import shutil

import numpy as np
import pytest

from sdxl_jax import atomic_write
from sdxl_jax.data import cache_files, precompute_writer
from sdxl_jax.data.sources import cache_layout, precomputed
from sdxl_jax.training import folder_lock
from tests.support import caches, datasets


@pytest.fixture
def cache(tmp_path, monkeypatch):
  return caches.make_first(tmp_path, monkeypatch)


def captions_of(folder):
  source = precomputed.Precomputed(folder, 'float16')
  return source.table['caption'].to_pylist()


def edit_caption(images):
  caches.write(images, 3, 'another caption')


def edit_image(images):
  caches.write(images, 3, number=19)


def remove_one(images):
  caches.remove(images, 3)


def add_one(images):
  caches.write(images, 99)


@pytest.mark.parametrize(
  'edit, counts, made',
  [
    (edit_caption, '23 kept, 1 changed, 0 removed, 0 added', 1),
    (edit_image, '23 kept, 1 changed, 0 removed, 0 added', 1),
    (remove_one, '23 kept, 0 changed, 1 removed, 0 added', 0),
    (add_one, '24 kept, 0 changed, 0 removed, 1 added', 1),
    (caches.edit_all, '20 kept, 2 changed, 2 removed, 3 added', 5),
  ],
)
def test_an_update_computes_what_changed(cache, tmp_path, edit, counts, made):
  """And gives the bytes of a cache that is computed at once."""
  folder, images, make = cache
  edit(images)
  lines, count = make(folder)
  assert f'{folder} is brought up to date: {counts}' in lines
  assert count == made
  make(tmp_path / 'fresh')
  assert caches.contents(folder) == caches.contents(tmp_path / 'fresh')
  assert make(folder) == ([lines[0], f'{folder} is finished'], 0)


def test_few_files_are_written(cache):
  """A shard without a change keeps its file, wherever records come or go."""
  folder, images, make = cache
  before = {p.name: p.stat().st_mtime_ns for p in folder.glob('*x*.array*')}
  caches.remove(images, 12)
  make(folder)
  after = {p.name: p.stat().st_mtime_ns for p in folder.glob('*x*.array*')}
  assert len(before) > 5
  assert len(before.items() & after.items()) >= len(before) - 2


def test_the_order_of_a_table_changes(tmp_path, monkeypatch):
  """Everything is copied, to where a cache of the new table has it."""
  examples = [datasets.example(i, caches.SIZES[i % 7]) for i in range(24)]
  images = tmp_path / 'images'
  datasets.write_folder(images, examples)
  config = caches.config_of(images)
  caches.make(monkeypatch, config, tmp_path / 'cache')
  datasets.write_folder(images, examples[::-1])
  _, made = caches.make(monkeypatch, config, tmp_path / 'cache')
  assert made == 0
  caches.make(monkeypatch, config, tmp_path / 'fresh')
  old, new = (caches.contents(tmp_path / n) for n in ('cache', 'fresh'))
  assert old == new
  assert captions_of(tmp_path / 'cache') == captions_of(tmp_path / 'fresh')


@pytest.mark.parametrize('kind', sorted(datasets.WRITERS))
def test_every_source(tmp_path, monkeypatch, kind):
  """A caption, an image and a score change, in files of the same names."""
  folder, examples = tmp_path / kind, []
  for i in range(8):
    examples.append(datasets.example(i, caches.SIZES[i % 7]))
  config = caches.config_of(tmp_path)

  def make():
    shutil.rmtree(folder, ignore_errors=True)
    settings = datasets.WRITERS[kind](folder, examples)
    config.data.source = kind
    config.data[kind].update(settings)
    return caches.make(monkeypatch, config, tmp_path / 'cache')

  make()
  assert make()[0][-1].endswith('is finished')
  examples[1]['text'] = 'another caption'
  examples[4]['image'] = datasets.example(19, caches.SIZES[4])['image']
  examples[6]['aesthetic_score'] = 9.5
  lines, made = make()
  assert '5 kept, 3 changed, 0 removed, 0 added' in lines[1] and made == 3
  source = precomputed.Precomputed(tmp_path / 'cache', 'float16')
  captions = source.table['caption'].to_pylist()
  assert 'another caption' in captions and 'picture 1' not in captions
  assert 9.5 in source.column('aesthetic_score')


@pytest.mark.parametrize('count', [1, 2])
def test_a_cache_that_another_command_took_over(cache, monkeypatch, count):
  """No further file is written, and nothing is said of the disk."""
  folder, images, make = cache
  caches.write(images, 3, number=19)
  caches.write(images, 4, number=19)
  index, layout = cache_layout.INDEX, cache_layout.LAYOUT
  before = {name: (folder / name).read_bytes() for name in (index, layout)}
  write, written = precompute_writer.write_rows, []

  def write_and_count(path, rows):
    written.append(path)
    write(path, rows)

  def check(lock):
    if len(written) == count:
      raise folder_lock.FolderLost('another process has the folder')

  monkeypatch.setattr(precompute_writer, 'write_rows', write_and_count)
  monkeypatch.setattr(folder_lock.FolderLock, 'check', check)
  with pytest.raises(folder_lock.FolderLost, match='^another process has the'):
    make(folder)
  assert len(written) == count
  assert before == {n: (folder / n).read_bytes() for n in before}


def test_images_that_moved_are_kept(cache, tmp_path):
  folder, images, make = cache
  moved = tmp_path / 'elsewhere'
  shutil.copytree(images, moved)
  shutil.rmtree(images)
  lines, made = make(folder, moved)
  assert lines[-1] == f'{folder} is finished' and made == 0
  # Training compares with the new place.
  layout = cache_layout.Layout.load(folder)
  assert layout.origin['data']['folder']['path'] == str(moved)


def test_a_mixture_that_repeats_records(tmp_path, monkeypatch):
  """Of each repetition other crops are stored, in updates too."""
  parts = {}
  for name, count, share in (('few', 3, 2), ('many', 12, 1)):
    for i in range(count):
      caches.write(tmp_path / name, i, f'{name} {i}')
    path = str(tmp_path / name)
    parts[name] = dict(source='folder', path=path, share=share)
  config = caches.config_of(tmp_path)
  with config.unlocked():
    config.data.source, config.data.mixture = 'mixture', parts
  folder = tmp_path / 'cache'
  _, made = caches.make(monkeypatch, config, folder)
  assert made == 36
  source = precomputed.Precomputed(folder, 'float16')
  wide = [i for i in range(36) if source[i]['caption'] == 'few 2']
  crops = {
    tuple(source[i]['variants'][0, 0]['crop_top_left'].tolist()) for i in wide
  }
  assert len(wide) == 8 and len(crops) > 3
  caches.write(tmp_path / 'few', 1, 'another caption')
  lines, made = caches.make(monkeypatch, config, folder)
  assert '28 kept, 8 changed, 0 removed, 0 added' in lines[-3] and made == 8
  caches.make(monkeypatch, config, tmp_path / 'fresh')
  assert caches.contents(folder) == caches.contents(tmp_path / 'fresh')


def fail_at(monkeypatch, module, name, call):
  """Makes a function fail at its call of this number, from 1."""
  function, calls = getattr(module, name), []

  def fail(*args, **options):
    calls.append(args)
    if len(calls) == call:
      raise OSError(28, 'No space left on device')
    return function(*args, **options)

  monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize(
  'module, name, call, is_new, remaining',
  [
    (precompute_writer, 'write_rows', 1, False, 5),
    (precompute_writer, 'write_rows', 3, False, 2),
    (cache_files, 'digest', 1, False, 0),
    (atomic_write, 'write_text', 2, False, 0),
    (cache_layout.Layout, 'save', 1, True, 0),
    (cache_files, 'remove_others', 1, True, 0),
  ],
)
def test_an_update_is_interrupted(
  cache, tmp_path, monkeypatch, module, name, call, is_new, remaining
):
  """The old cache stays, or the new one is there; the rest is computed."""
  folder, images, make = cache
  old = captions_of(folder)
  caches.edit_all(images)
  with monkeypatch.context() as patch:
    fail_at(patch, module, name, call)
    with pytest.raises(OSError, match='No space left.*\n.*same command again'):
      make(folder)
  make(tmp_path / 'fresh')
  new = captions_of(tmp_path / 'fresh')
  assert captions_of(folder) == (new if is_new else old)
  # Only the shards that are missing are computed.
  _, made = make(folder)
  assert made == remaining
  assert caches.contents(folder) == caches.contents(tmp_path / 'fresh')


def test_data_change_again_while_a_cache_is_computed(
  cache, tmp_path, monkeypatch
):
  """Finished shards are of use, and files of a former plan are removed."""
  _, images, make = cache
  folder = tmp_path / 'new'
  with monkeypatch.context() as patch:
    fail_at(patch, precompute_writer, 'write_rows', 6)
    with pytest.raises(OSError):
      make(folder)
  caches.write(images, 4, 'another caption')
  _, made = make(folder)
  assert made < 24
  make(tmp_path / 'fresh')
  assert caches.contents(folder) == caches.contents(tmp_path / 'fresh')


def test_an_image_is_broken_and_repaired(cache, tmp_path):
  folder, images, make = cache
  before, content = caches.contents(folder), (images / '0009.png').read_bytes()
  (images / '0009.png').write_bytes(content[: len(content) // 2])
  lines, _ = make(folder)
  assert '23 kept, 1 changed' in lines[1]
  assert '0009.png: not a readable image' in lines[-1]
  assert '0009.png' in (folder / 'left_out.txt').read_text()
  # It is not among the changes of the next time.
  assert make(folder)[0][-1] == f'{folder} is finished'
  source = precomputed.Precomputed(folder, 'float16')
  readable = np.flatnonzero(source.column('problem') == 0)
  assert len(readable) == 23
  for i in readable:
    assert source[i]['text']['context'].shape == (77, 16)
  (images / '0009.png').write_bytes(content)
  assert '23 kept, 1 changed' in make(folder)[0][1]
  assert caches.contents(folder) == before


@pytest.mark.parametrize(
  'options, message',
  [
    ({'crops': 2}, '\n  crops: 1 > 2\n'),
    ({'flips': True}, '\n  flips: 1 > 2\n'),
    ({'dtype': 'bfloat16'}, '\n  dtype: float16 > bfloat16\n'),
    ({'nets': 'second'}, '\n  facts.nets.text_encoder: first > second\n'),
  ],
)
def test_other_settings_are_refused(cache, options, message):
  """Also where records changed: nothing is written."""
  folder, images, make = cache
  caches.edit_all(images)
  before = caches.contents(folder)
  with pytest.raises(ValueError, match='holds another cache') as error:
    make(folder, **options)
  assert message in str(error.value)
  assert caches.contents(folder) == before


def test_other_fields_are_refused(cache, monkeypatch):
  folder, images, _ = cache
  for field, value in (
    ('seed', 1),
    ('data.background', 'black'),
    ('text_encoder.dtype', 'bfloat16'),
    ('data.buckets', ((32, 48), (48, 24))),
  ):
    config = caches.config_of(images)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match='holds another cache'):
      caches.make(monkeypatch, config, folder)
  # These decide nothing.
  config = caches.config_of(images)
  config.update_from_flattened_dict(
    {'text_encoder.remat': 'full', 'data.num_threads': 2, 'init_from': 'x'}
  )
  lines, _ = caches.make(monkeypatch, config, folder)
  assert lines[-1] == f'{folder} is finished'


def test_a_disk_without_room_is_refused_at_once(cache, tmp_path, monkeypatch):
  _, _, make = cache
  usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage)
  with pytest.raises(OSError, match=r'1e-05 GB left, and the shards .* take'):
    make(tmp_path / 'new')


@pytest.mark.skipif(
  not pathlib.Path('/dev/full').exists(), reason='needs /dev/full'
)
def test_a_full_disk_is_no_traceback():
  with pytest.raises(OSError, match='/dev/full cannot be written.*No space'):
    precompute_writer.write_rows(pathlib.Path('/dev/full'), [b'0' * 1000])


def test_a_missing_shard_is_no_finished_cache(cache):
  folder, _, make = cache
  next(folder.glob('*x*.array_record')).unlink()
  with pytest.raises(ValueError, match='shards are missing'):
    make(folder)


def test_a_cache_of_a_cache_is_refused(cache, monkeypatch):
  folder, images, _ = cache
  config = caches.config_of(images)
  config.data.source = 'precomputed'
  with pytest.raises(ValueError, match='name the source of the images'):
    caches.make(monkeypatch, config, folder.parent / 'new')
