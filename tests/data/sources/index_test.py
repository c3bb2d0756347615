"""An index is built once, whole, and anew when the data changed."""

import concurrent.futures
import pathlib
import time

import numpy as np
import pyarrow as pa
import pytest

from sdxl_jax.data.sources import index

MEASURED = 'measured.txt'


def measure(what, folder, broken=()):
  """Notes what it was asked for."""
  if what in broken:
    raise ValueError(f'{what} cannot be measured')
  with open(folder / MEASURED, 'a') as file:
    file.write(f'{what}\n')
  return pa.table({'name': [what] * 3, 'place': [0, 1, 2]})


class Measure:
  """Picklable, for other processes."""

  def __init__(self, folder, broken=()):
    self.folder, self.broken = folder, broken

  seconds = 0.0

  def __call__(self, what):
    time.sleep(self.seconds)
    return measure(what, self.folder, self.broken)

  @property
  def asked(self):
    path = self.folder / MEASURED
    names = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return sorted(names)


PARTS = [('a', 1), ('b', 1), ('c', 1), ('d', 1), ('e', 1)]


def load(folder, ask, parts=PARTS, workers=0, **facts):
  return index.load(folder, {'source': 'test', **facts}, parts, ask, workers)


@pytest.mark.parametrize('workers', [0, 2])
def test_built_once(tmp_path, workers):
  ask = Measure(tmp_path)
  table = load(tmp_path, ask, workers=workers)
  assert table['name'].to_pylist() == [n for n, _ in PARTS for _ in range(3)]
  assert ask.asked == [name for name, _ in PARTS]
  assert load(tmp_path, ask, workers=workers).equals(table)
  assert ask.asked == []
  assert {p.suffix for p in tmp_path.iterdir()} == {'.arrow'}


def test_rows_are_mapped_and_never_copied(tmp_path):
  """Neither to join the parts nor to read them again."""
  many = lambda what: pa.table({'place': np.arange(1 << 18)})
  parts = [(i, 1) for i in range(8)]
  pool = pa.default_memory_pool()
  before, earlier = pool.bytes_allocated(), pool.max_memory()
  for _ in range(2):
    table = load(tmp_path, many, parts)
    assert table.nbytes == 8 * 8 << 18
    assert pool.bytes_allocated() < before + table.nbytes / 8
    assert pool.max_memory() < max(earlier, before + table.nbytes / 4)


@pytest.mark.parametrize(
  'parts', [PARTS[:-1], [*PARTS, ('f', 1)], [('a', 2), *PARTS[1:]]]
)
def test_changed_data(tmp_path, parts, caplog):
  ask = Measure(tmp_path)
  load(tmp_path, ask)
  assert ask.asked
  table = load(tmp_path, ask, parts)
  assert ask.asked == [name for name, _ in parts]
  assert len(table) == 3 * len(parts) and 'the data changed' in caplog.text


def test_other_columns_have_their_own(tmp_path):
  ask = Measure(tmp_path)
  for columns in (['x'], ['y'], ['x']):
    load(tmp_path, ask, columns=columns)
  assert len(ask.asked) == 2 * len(PARTS)


def test_an_attempt_that_broke_goes_on(tmp_path):
  with pytest.raises(ValueError, match='d cannot be measured'):
    load(tmp_path, Measure(tmp_path, broken='d'))
  ask = Measure(tmp_path)
  assert ask.asked == ['a', 'b', 'c']
  load(tmp_path, ask)
  assert ask.asked == ['d', 'e']


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty'])
def test_damage(tmp_path, damage, caplog):
  ask = Measure(tmp_path)
  table = load(tmp_path, ask).to_pylist()
  assert ask.asked
  path = next(tmp_path.glob('.*.arrow'))
  content = bytearray(path.read_bytes())
  if damage == 'flip':
    content[len(content) // 2] ^= 1
  path.write_bytes(
    {'flip': content, 'cut': content[:-100], 'empty': b''}[damage]
  )
  assert load(tmp_path, ask).to_pylist() == table
  assert ask.asked and 'is damaged' in caplog.text


def test_data_whose_place_takes_no_file(tmp_path, monkeypatch):
  cache = tmp_path / 'cache'
  monkeypatch.setenv('SDXL_JAX_CACHE', str(cache))
  ask = Measure(tmp_path)
  load(None, ask)
  assert ask.asked and list(cache.glob('*.arrow'))
  load(None, ask)
  assert not ask.asked


def test_columns_that_differ():
  numbers, nothing = pa.table({'x': [1.0]}), pa.table({'y': [2]})
  table = index.join([numbers, nothing])
  assert table['x'].to_pylist() == [1.0, None]
  with pytest.raises(ValueError, match='numbers in places and text in others'):
    index.join([numbers, pa.table({'x': ['one']})])


def test_stamp_changes_with_the_content(tmp_path):
  import fsspec

  path = pathlib.Path(tmp_path / 'file')
  fs = fsspec.filesystem('file')
  path.write_text('one')
  before = index.file_version(fs, path)
  assert index.file_version(fs, path) == before
  path.write_text('three')
  assert index.file_version(fs, path) != before


def test_others_wait_for_the_one_that_builds(tmp_path):
  """And do not measure what it has measured."""
  slow = Measure(tmp_path)
  slow.seconds = 0.1
  asked = lambda: load(tmp_path, slow)['name'].to_pylist()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    tables = [job.result() for job in [pool.submit(asked) for _ in range(4)]]
  assert all(table == tables[0] for table in tables)
  assert slow.asked == [name for name, _ in PARTS]


def test_a_dead_process_keeps_nobody_waiting(tmp_path, monkeypatch):
  monkeypatch.setattr(index, 'DEAD', 0.5)
  ask = Measure(tmp_path)
  load(tmp_path, ask)
  path = next(tmp_path.glob('.*.arrow'))
  path.with_suffix('.lock').touch()
  path.unlink()
  load(tmp_path, ask)
  assert {p.suffix for p in tmp_path.iterdir()} == {'.arrow', '.txt'}
