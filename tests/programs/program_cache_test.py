"""The folder of compiled programs: which one, its bounds, and broken files."""

import os
import pathlib
import resource
import warnings

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.custom_partitioning import custom_partitioning

from sdxl_jax.programs import program_cache
from sdxl_jax.sampling import phase_clock

OPTIONS = (
  'jax_compilation_cache_dir',
  'jax_enable_compilation_cache',
  'jax_persistent_cache_enable_xla_caches',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
  'jax_remove_custom_partitioning_ptr_from_cache_key',
)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  """A user's home, where JAX was told nothing."""
  before = {name: getattr(jax.config, name) for name in OPTIONS}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setattr(program_cache, '_used', set())
  monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
  for name in ('JAX_COMPILATION_CACHE_DIR', 'SDXL_JAX_CACHE'):
    monkeypatch.setenv(name, '')  # so that what a test sets is undone
    monkeypatch.delenv(name)
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  yield tmp_path
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def told(home, monkeypatch):
  """The warnings, as they reach the user."""
  lines = []
  monkeypatch.setattr(
    warnings, 'showwarning', lambda message, *args: lines.append(str(message))
  )
  return lines


@pytest.fixture(scope='module')
def clock():
  """Counts programs, and those that were in the cache."""
  return phase_clock.PhaseClock()


@pytest.fixture
def compile_again(clock):
  """Compiles and runs as another process would; returns whether it was read."""

  def run(function, *args):
    jax.clear_caches()
    compiled, read = clock.programs, clock.from_cache
    jax.block_until_ready(jax.jit(function)(*args))
    assert clock.programs == compiled + 1
    return clock.from_cache == read + 1

  return run


def double(x):
  return x + x


def programs(folder, module='double'):
  return sorted(pathlib.Path(folder).glob(f'jit_{module}-*-cache'))


def test_small_programs_are_kept_in_the_home(home, compile_again):
  program_cache.turn_on()
  x = np.zeros(1)
  assert not compile_again(double, x)
  assert compile_again(double, x)
  assert program_cache.folder() == str(home / '.cache' / 'sdxl_jax')
  assert len(programs(home / '.cache' / 'sdxl_jax')) == 1
  assert (home / '.cache' / 'sdxl_jax').stat().st_mode & 0o077 == 0


def test_the_folder(home, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(home / 'x'))
  assert program_cache.default_folder() == home / 'x' / 'sdxl_jax'
  monkeypatch.setenv('XDG_CACHE_HOME', 'not/absolute')
  assert program_cache.default_folder() == home / '.cache' / 'sdxl_jax'
  # A run's own folder, then the default again.
  program_cache.turn_on(home / 'run')
  assert program_cache.folder() == str(home / 'run')
  program_cache.turn_on()
  assert program_cache.folder() == str(home / '.cache' / 'sdxl_jax')
  # What the variable or the flag names precedes both.
  program_cache.choose('~/named')
  program_cache.turn_on(home / 'run')
  assert program_cache.folder() == str(home / 'named')
  program_cache.choose(None)
  program_cache.turn_on()
  assert program_cache.folder() == str(home / 'named')


def test_no_folder(home):
  program_cache.choose('')
  program_cache.turn_on(home / 'run')
  assert program_cache.folder() is None and not list(home.iterdir())


def test_what_jax_was_told_stays(home, monkeypatch):
  jax.config.update('jax_compilation_cache_dir', str(home / 'of_jax'))
  program_cache.turn_on(home / 'run')
  assert program_cache.folder() == str(home / 'of_jax')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(home / 'of_jax'))
  with pytest.warns(UserWarning, match='--cache_dir=a is not used, since JAX'):
    program_cache.choose('a')
  program_cache.turn_on()
  assert program_cache.folder() == str(home / 'of_jax')
  jax.config.update('jax_compilation_cache_dir', None)
  jax.config.update('jax_enable_compilation_cache', False)
  program_cache.turn_on()
  assert program_cache.folder() is None and not list(home.iterdir())


def test_a_folder_that_cannot_be_written(home, monkeypatch, compile_again):
  (home / 'file').write_text('')
  monkeypatch.setenv('SDXL_JAX_CACHE', str(home / 'file' / 'a'))
  with pytest.warns(UserWarning, match='not kept, since .*/file/a cannot be'):
    program_cache.turn_on()
  assert program_cache.folder() is None
  assert not compile_again(double, np.zeros(1))

  def fail():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.delenv('SDXL_JAX_CACHE')
  monkeypatch.setattr(pathlib.Path, 'home', fail)
  with pytest.warns(UserWarning, match='Could not determine home'):
    program_cache.turn_on()


def test_a_full_disk(home, told, compile_again):
  """Is named once; what was half written goes, and nothing more is written."""
  program_cache.turn_on(home / 'run')
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (99, most))  # a disk of 99 bytes
  try:
    for x in (np.zeros(1), np.zeros(2)):
      assert not compile_again(double, x)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  assert len(told) == 1 and not programs(home / 'run')
  assert 'programs are no longer kept in' in told[0]
  assert 'File too large): make room' in told[0]


@pytest.mark.parametrize('length', [0, 9])
def test_a_program_that_was_half_written(home, told, length, compile_again):
  """Is compiled, and kept, again; the others of its name stay."""
  program_cache.turn_on(home / 'run')
  compile_again(double, np.zeros(1))
  (path,) = programs(home / 'run')
  compile_again(double, np.zeros(2))
  path.write_bytes(path.read_bytes()[:length])
  (home / 'run' / 'jit_double-0-cache').write_bytes(program_cache.ZSTANDARD)
  assert not compile_again(double, np.zeros(1))
  assert len(told) == 1 and 'is broken (' in told[0] and '\n' not in told[0]
  assert 'it is compiled again' in told[0]
  assert all(compile_again(double, np.zeros(n)) for n in (1, 2))
  assert len(programs(home / 'run')) == 2
  warnings.warn('of another kind', stacklevel=1)
  assert told[1:] == ['of another kind']


def test_the_least_recently_used_go(tmp_path):
  for name, used in (('a', 3), ('b', 1), ('c', 2), ('d', 4)):
    path = tmp_path / f'{name}-cache'
    path.write_bytes(b'1' * 10)
    os.utime(path, (used, 0))
  (tmp_path / 'other').write_bytes(b'1' * 99)
  program_cache.prune(tmp_path, 40)
  assert len(list(tmp_path.iterdir())) == 5
  program_cache.prune(tmp_path, 29)
  assert {p.name for p in tmp_path.iterdir()} == {'a-cache', 'd-cache', 'other'}


def test_programs_that_name_a_function_by_its_address(home, compile_again):
  """As those with cuDNN's attention on several GPUs do."""

  def make():
    split = custom_partitioning(lambda x: x + x)

    def keep(mesh, shapes, result):
      return shapes[0].sharding

    def partition(mesh, shapes, result):
      sharding = shapes[0].sharding
      return mesh, lambda x: x + x, sharding, (sharding,)

    split.def_partition(
      partition=partition,
      infer_sharding_from_operands=keep,
      sharding_rule='i -> i',
    )

    def twice(x):
      return split(x)

    return twice

  mesh = jax.make_mesh((len(jax.devices()),), ('rows',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('rows'))
  x = jax.device_put(np.ones(8, 'f4'), rows)
  program_cache.turn_on(home / 'run')
  assert not compile_again(make(), x)
  assert compile_again(make(), x)


def test_programs_for_absent_devices_are_not_kept(home, compile_again):
  program_cache.turn_on(home / 'run')
  with program_cache.unused():
    assert program_cache.folder() is None
    assert not compile_again(double, np.zeros(1))
  assert not programs(home / 'run')
  assert program_cache.folder() == str(home / 'run')
  compile_again(double, np.zeros(1))
  assert compile_again(double, np.zeros(1))
