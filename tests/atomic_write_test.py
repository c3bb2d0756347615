"""Atomic writes: success, failure, concurrency, links, devices, folders."""

import multiprocessing
import os
import pathlib
import threading

import pytest

from sdxl_jax import atomic_write

# Forking a process that runs JAX's threads may hang.
SPAWN = multiprocessing.get_context('spawn')


def fill(folder, text):
  """Makes a folder with one file."""
  folder.mkdir()
  (folder / 'file').write_text(text)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('length', [1, 255])
def test_files_are_made_and_replaced(tmp_path, length):
  path = tmp_path / 'parents' / 'are made' / ('x' * length)
  atomic_write.write_text(path, 'ø')
  assert path.read_bytes() == 'ø'.encode()
  with open(path, 'rb') as reader:
    atomic_write.write_bytes(path, b'new')
    assert reader.read() == 'ø'.encode()  # a reader keeps what it has opened
  assert path.read_bytes() == b'new'
  assert names(path.parent) == [path.name]


def test_folders_are_made_and_replaced(tmp_path):
  path = tmp_path / 'folder'
  for text in ('old', 'new'):
    with atomic_write.atomic_path(path) as partial:
      fill(partial, text)
    assert (path / 'file').read_text() == text
  assert names(tmp_path) == ['folder']


@pytest.mark.parametrize('write', [fill, pathlib.Path.write_text])
@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_content(tmp_path, write, error):
  path = tmp_path / 'target'
  write(path, 'old')
  with pytest.raises(error), atomic_write.atomic_path(path) as partial:
    write(partial, 'half')
    raise error
  file = path if path.is_file() else path / 'file'
  assert file.read_text() == 'old'
  assert names(tmp_path) == ['target']


def test_a_failed_rename_leaves_the_old_folder(tmp_path, monkeypatch):
  path = tmp_path / 'folder'
  fill(path, 'old')
  rename, calls = os.rename, []

  def fail_second(*args):
    calls.append(args)
    if len(calls) == 2:
      raise OSError('no rename')
    rename(*args)

  monkeypatch.setattr(os, 'rename', fail_second)
  with pytest.raises(OSError, match='no rename'):
    with atomic_write.atomic_path(path) as partial:
      fill(partial, 'new')
  assert (path / 'file').read_text() == 'old'
  assert names(tmp_path) == ['folder']


def test_overwrite_is_refused(tmp_path):
  path, link = tmp_path / 'file', tmp_path / 'link'
  path.write_text('old')
  link.symlink_to(tmp_path / 'nowhere')
  for target in (path, link):
    with pytest.raises(FileExistsError, match='exists: remove .*--overwrite'):
      with atomic_write.atomic_path(target, overwrite=False):
        pytest.fail('entered')
  assert path.read_text() == 'old' and link.is_symlink()
  with atomic_write.atomic_path(tmp_path / 'new', overwrite=False) as partial:
    partial.write_text('new')
  assert names(tmp_path) == ['file', 'link', 'new']


def test_a_folder_and_a_file_do_not_replace_each_other(tmp_path):
  folder, file = tmp_path / 'folder', tmp_path / 'file'
  fill(folder, 'kept')
  file.write_text('kept')
  with pytest.raises(IsADirectoryError):
    atomic_write.write_text(folder, 'new')
  with pytest.raises(NotADirectoryError):
    with atomic_write.atomic_path(file) as partial:
      fill(partial, 'new')
  assert (folder / 'file').read_text() == file.read_text() == 'kept'
  assert names(tmp_path) == ['file', 'folder']


def test_links_stay(tmp_path):
  for name in ('file', 'folder', 'missing'):
    (tmp_path / f'to {name}').symlink_to(tmp_path / name)
  (tmp_path / 'file').write_text('old')
  fill(tmp_path / 'folder', 'old')
  atomic_write.write_text(tmp_path / 'to file', 'new')
  atomic_write.write_text(tmp_path / 'to missing', 'new')
  with atomic_write.atomic_path(tmp_path / 'to folder') as partial:
    fill(partial, 'new')
  for name in ('file', 'folder/file', 'missing'):
    assert (tmp_path / name).read_text() == 'new'
  assert all((tmp_path / f'to {n}').is_symlink() for n in ('file', 'folder'))
  assert len(names(tmp_path)) == 6


def test_devices_stay(tmp_path):
  atomic_write.write_bytes('/dev/null', b'x')
  assert pathlib.Path('/dev/null').is_char_device()
  with pytest.raises(OSError, match='No space left'):
    atomic_write.write_bytes('/dev/full', b'x')
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  results = []
  reader = threading.Thread(target=lambda: results.append(pipe.read_bytes()))
  reader.start()
  atomic_write.write_bytes(pipe, b'x')
  reader.join(10)
  assert results == [b'x'] and pipe.is_fifo()


def write_often(path, letter):
  for _ in range(100):
    atomic_write.write_bytes(path, letter * 100_000)


@pytest.mark.parametrize('kind', [threading.Thread, SPAWN.Process])
def test_writers_of_one_path_do_not_collide(tmp_path, kind):
  path = tmp_path / 'file'
  atomic_write.write_bytes(path, b'a' * 100_000)
  workers = [kind(target=write_often, args=(path, x)) for x in (b'b', b'c')]
  for worker in workers:
    worker.start()
  while any(worker.is_alive() for worker in workers):
    content = path.read_bytes()
    assert content == content[:1] * 100_000  # complete, of one writer
  for worker in workers:
    worker.join()
    assert not getattr(worker, 'exitcode', 0)
  assert names(tmp_path) == ['file']


def write_half_and_die(path):
  with atomic_write.atomic_path(path) as partial:
    partial.write_bytes(b'half')
    os._exit(9)


def test_a_killed_process_leaves_a_file_that_is_not_read(tmp_path):
  path = tmp_path / 'a.png'
  process = SPAWN.Process(target=write_half_and_die, args=(path,))
  process.start()
  process.join()
  assert process.exitcode == 9
  (name,) = names(tmp_path)
  assert name.startswith('.a.png.') and name.endswith('.partial')
