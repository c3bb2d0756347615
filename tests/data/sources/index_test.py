"""Tests that an index is built once, complete, and again for changed data."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdxl_jax.data.sources import build_lock, index, kinds, record_filters
from tests.support import datasets

PNG = datasets.encode(datasets.ramp(8, 12))
MEASURED = 'measured.txt'
PARTS = [('a', 1), ('b', 1), ('c', 1), ('d', 1), ('e', 1)]


class Measure:
  """Measures a part, and writes down its name; picklable.

  Args:
    folder: of the list of names.
    broken: parts that raise an error.
    seconds: for each part.
    gate: file in the folder without which no part is measured; '': none.
  """

  def __init__(self, folder, broken=(), seconds=0.0, gate=''):
    self.folder, self.broken, self.seconds = folder, broken, seconds
    self.gate = folder / gate

  def __call__(self, what):
    wait_until(self.gate.exists)
    time.sleep(self.seconds)
    if what in self.broken:
      raise ValueError(f'{what} cannot be measured')
    with open(self.folder / MEASURED, 'a') as file:
      file.write(f'{what}\n')
    return pa.table({'name': [what] * 3, 'place': [0, 1, 2]})

  def pop_names(self):
    """Returns the parts measured since the last call, sorted."""
    path = self.folder / MEASURED
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(names)


def load(folder, measure, parts=PARTS, workers=0, **options):
  options = {'source': 'test', **options}
  return index.load(folder, options, parts, measure, workers)


@pytest.mark.parametrize('workers', [0, 2])
def test_built_once(tmp_path, workers):
  measure = Measure(tmp_path)
  table = load(tmp_path, measure, workers=workers)
  assert table['name'].to_pylist() == [n for n, _ in PARTS for _ in range(3)]
  assert measure.pop_names() == [name for name, _ in PARTS]
  assert load(tmp_path, measure, workers=workers).equals(table)
  assert measure.pop_names() == []
  assert {p.suffix for p in tmp_path.iterdir()} == {'.arrow', '.lock'}


def test_rows_are_mapped_and_never_copied(tmp_path):
  """Neither to join the parts nor to read them again."""

  def measure(what):
    return pa.table({'place': np.arange(1 << 18)})

  parts = [(i, 1) for i in range(8)]
  pool = pa.default_memory_pool()
  before, earlier = pool.bytes_allocated(), pool.max_memory()
  for _ in range(2):
    table = load(tmp_path, measure, parts)
    assert table.nbytes == 8 * 8 << 18
    assert pool.bytes_allocated() < before + table.nbytes / 8
    assert pool.max_memory() < max(earlier, before + table.nbytes / 4)


@pytest.mark.parametrize(
  'parts', [PARTS[:-1], [*PARTS, ('f', 1)], [('a', 2), *PARTS[1:]]]
)
def test_changed_data(tmp_path, parts, caplog):
  measure = Measure(tmp_path)
  load(tmp_path, measure)
  assert measure.pop_names()
  table = load(tmp_path, measure, parts)
  assert measure.pop_names() == [name for name, _ in parts]
  assert len(table) == 3 * len(parts) and 'the data changed' in caplog.text


def test_other_columns_have_their_own(tmp_path):
  measure = Measure(tmp_path)
  for columns in (['x'], ['y'], ['x']):
    load(tmp_path, measure, columns=columns)
  assert len(measure.pop_names()) == 2 * len(PARTS)


def test_an_interrupted_build_is_continued(tmp_path):
  with pytest.raises(ValueError, match='d cannot be measured'):
    load(tmp_path, Measure(tmp_path, broken='d'))
  measure = Measure(tmp_path)
  assert measure.pop_names() == ['a', 'b', 'c']
  load(tmp_path, measure)
  assert measure.pop_names() == ['d', 'e']


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty'])
def test_damage(tmp_path, damage, caplog):
  measure = Measure(tmp_path)
  table = load(tmp_path, measure).to_pylist()
  assert measure.pop_names()
  path = next(tmp_path.glob('.*.arrow'))
  content = bytearray(path.read_bytes())
  if damage == 'flip':
    content[len(content) // 2] ^= 1
  path.write_bytes(
    {'flip': content, 'cut': content[:-100], 'empty': b''}[damage]
  )
  assert load(tmp_path, measure).to_pylist() == table
  assert measure.pop_names() and 'is damaged' in caplog.text


def test_data_without_a_local_folder(tmp_path, monkeypatch):
  cache = tmp_path / 'cache'
  monkeypatch.setenv('SDXL_JAX_CACHE', str(cache))
  measure = Measure(tmp_path)
  load(None, measure)
  assert measure.pop_names() and list(cache.glob('*.arrow'))
  load(None, measure)
  assert not measure.pop_names()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  """Index and lock go to the cache, and nothing into the folder."""
  folder, cache = tmp_path / 'data', tmp_path / 'cache'
  folder.mkdir()
  monkeypatch.setenv('SDXL_JAX_CACHE', str(cache))
  # os.access, since root may write to any folder.
  monkeypatch.setattr(index.os, 'access', lambda path, mode: path != folder)
  measure = Measure(tmp_path)
  for names in ([name for name, _ in PARTS], []):
    load(folder, measure)
    assert measure.pop_names() == names
  assert not list(folder.iterdir())
  assert {p.suffix for p in cache.iterdir()} == {'.arrow', '.lock'}


def test_columns_that_differ():
  numbers, others = pa.table({'x': [1.0]}), pa.table({'y': [2]})
  table = index.join([numbers, others])
  assert table['x'].to_pylist() == [1.0, None]
  with pytest.raises(ValueError, match='numbers in places and text in others'):
    index.join([numbers, pa.table({'x': ['one']})])


def test_version_changes_with_the_content(tmp_path):
  path = pathlib.Path(tmp_path / 'file')
  fs = fsspec.filesystem('file')
  path.write_text('one')
  before = index.file_version(fs, path)
  assert index.file_version(fs, path) == before
  path.write_text('three')
  assert index.file_version(fs, path) != before


def test_threads_wait_for_the_one_that_builds(tmp_path):
  measure = Measure(tmp_path, seconds=0.1)

  def names(_):
    return load(tmp_path, measure)['name'].to_pylist()

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    tables = list(pool.map(names, range(4)))
  assert all(table == tables[0] for table in tables)
  assert measure.pop_names() == [name for name, _ in PARTS]


BUILD = """
import pathlib, sys
from tests.data.sources import index_test
folder = pathlib.Path(sys.argv[1])
table = index_test.load(folder, index_test.Measure(folder, gate='gate'))
print(len(table))
"""


def start_building(folder, log):
  """Starts a process that builds the index, once the file `gate` exists."""
  with open(log, 'w') as file:
    return subprocess.Popen(
      [sys.executable, '-c', BUILD, str(folder)],
      cwd=pathlib.Path(__file__).parents[3],
      stdout=file,
      stderr=file,
    )


def wait_until(condition):
  end = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def start_and_hold_lock(folder, log):
  """Starts a process and returns it while it measures the first part."""
  process = start_building(folder, log)
  wait_until(lambda: list(folder.glob('.*.parts')))
  return process


def test_two_processes_build_one_index_once(tmp_path):
  """The one that comes later waits, and reports it in one line."""
  logs = [tmp_path / 'first.log', tmp_path / 'second.log']
  first = start_and_hold_lock(tmp_path, logs[0])
  second = start_building(tmp_path, logs[1])
  wait_until(lambda: 'waiting for' in logs[1].read_text())
  (tmp_path / 'gate').touch()
  assert first.wait(120) == second.wait(120) == 0
  assert Measure(tmp_path).pop_names() == [name for name, _ in PARTS]
  lock = next(tmp_path.glob('.*.lock'))
  waited = f'another process builds the index; waiting for {lock}\n'
  # After two seconds of waiting for the gate it also shows its progress.
  assert logs[0].read_text().splitlines()[-1] == f'{3 * len(PARTS)}'
  assert logs[1].read_text() == f'WARNING:root:{waited}{3 * len(PARTS)}\n'


def test_a_killed_builder_blocks_nobody(tmp_path, caplog):
  """Its lock is free at once."""
  killed = start_and_hold_lock(tmp_path, tmp_path / 'killed.log')
  killed.send_signal(signal.SIGKILL)
  assert killed.wait() == -signal.SIGKILL
  measure = Measure(tmp_path)
  assert len(load(tmp_path, measure)) == 3 * len(PARTS)
  assert measure.pop_names() == [name for name, _ in PARTS]
  assert 'another process' not in caplog.text
  assert not list(tmp_path.glob('.*.parts'))


def measure_slowly(folder):
  """Notes its process, and takes longer than the test."""
  (pathlib.Path(folder) / f'{os.getpid()}.worker').touch()
  time.sleep(600)


def test_workers_end_with_a_killed_builder(tmp_path):
  code = (
    'from sdxl_jax.data.sources import index\n'
    'from tests.data.sources import index_test\n'
    'if __name__ == "__main__":\n'
    f'  parts = [({str(tmp_path)!r}, i) for i in range(8)]\n'
    '  measure = index_test.measure_slowly\n'
    f'  index.load({str(tmp_path)!r}, {{}}, parts, measure, 2)\n'
  )
  (tmp_path / 'build.py').write_text(code)
  builder = subprocess.Popen(
    [sys.executable, tmp_path / 'build.py'],
    env=os.environ | {'PYTHONPATH': os.getcwd()},
  )
  wait_until(lambda: len(list(tmp_path.glob('*.worker'))) == 2)
  builder.kill()
  builder.wait()
  workers = [int(path.stem) for path in tmp_path.glob('*.worker')]
  wait_until(lambda: not any(map(is_running, workers)))


def is_running(pid):
  try:
    status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(')')[2].split()[0] != 'Z'


def test_waiting_has_an_end(tmp_path, monkeypatch):
  monkeypatch.setattr(build_lock, 'TIMEOUT_S', 0.36)
  builder = start_and_hold_lock(tmp_path, tmp_path / 'builder.log')
  with pytest.raises(TimeoutError, match=r'\.lock was locked for 0.0001 hours'):
    load(tmp_path, Measure(tmp_path))
  (tmp_path / 'gate').touch()
  assert builder.wait(120) == 0


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def acquire(self, *args, **settings):
    raise NotImplementedError

  monkeypatch.setattr(build_lock.filelock.FileLock, 'acquire', acquire)
  with pytest.raises(OSError, match='has no locks'):
    load(tmp_path, Measure(tmp_path))


def test_columns_of_two_types_name_their_files(tmp_path):
  for name, values in (('a', [None]), ('b', [1]), ('c', ['high'])):
    table = pa.table({'image': [PNG], 'text': ['x'], 'p': values})
    pq.write_table(table, tmp_path / f'{name}.parquet')
  filters = record_filters.Filters(columns=(('p', '>', 0),))
  with pytest.raises(ValueError) as error:
    kinds.make_source('parquet', {'files': tmp_path}, filters, 0)
  found = f'(p: double in {tmp_path}/b.parquet, string in {tmp_path}/c.parquet)'
  assert found in str(error.value)


def test_all_broken_files_are_named(tmp_path):
  for i in range(4):
    table = pa.table({'image': [PNG], 'text': ['x']})
    pq.write_table(table, tmp_path / f'{i}.parquet')
  for i in (1, 3):
    path = tmp_path / f'{i}.parquet'
    path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match='(?s)2 files:.*1.parquet.*3.parquet'):
    kinds.make_source('parquet', {'files': tmp_path}, workers=0)
