"""Where a run may write, and with which config it may go on."""

import errno
import json
import pathlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sdxl_jax.training import workdirs
from tests.support import tiny_config


def test_unwritable(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='file/run cannot be written'):
    workdirs.make(tmp_path / 'file' / 'run')


def test_full_disk(tmp_path, monkeypatch):
  def write(self, content):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', write)
  with pytest.raises(ValueError, match='No space left on device'):
    workdirs.make(tmp_path)


def test_the_old_config_survives_a_full_disk(tmp_path, monkeypatch):
  path = tmp_path / 'config.json'
  path.write_text('old')
  write = pathlib.Path.write_text

  def write_half(self, text):
    write(self, text[:1])
    raise OSError(errno.ENOSPC, 'No space left on device')

  def write_config():
    config = tiny_config.get_config()
    workdirs.write_config(config, tmp_path, False, False, print)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_text', write_half)
    with pytest.raises(OSError):
      write_config()
  assert path.read_text() == 'old'
  write_config()
  assert json.loads(path.read_text())['seed'] == 0
  assert list(tmp_path.iterdir()) == [path]


def test_urls():
  with pytest.raises(ValueError, match='gs://bucket/run is a URL'):
    workdirs.make('gs://bucket/run')


def test_config_of_a_run_that_has_steps(tmp_path):
  lines = []

  def write(config, has_steps, accept=False):
    workdirs.write_config(config, tmp_path, has_steps, accept, lines.append)

  config = tiny_config.get_config()
  write(config, False)
  config.seed = 7
  write(config, False)  # nothing was trained: another config may follow
  config.seed = 8
  with pytest.raises(ValueError, match='seed: 7 > 8'):
    write(config, True)
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['seed'] == 7 and not lines
  write(config, True, accept=True)
  assert 'seed: 7 > 8' in lines[0]


def test_a_cache_that_the_user_named_is_kept(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(before))
  workdirs.cache_compilations(tmp_path)
  assert jax.config.jax_compilation_cache_dir == before
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  try:
    workdirs.cache_compilations(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'compiled')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()
