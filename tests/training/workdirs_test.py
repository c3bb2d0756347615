"""Where a run may write, and with which config it may go on."""

import errno
import json
import pathlib
import types

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from sdxl_jax.training import workdirs
from tests.support import tiny_config


def checkpoints(step=None, config=None):
  """Stands for those of a workdir, the latest of which is of this step."""
  return types.SimpleNamespace(latest_step=step, read_config=lambda: config)


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
  write = pathlib.Path.write_bytes

  def write_half(self, data):
    write(self, data[:1])
    raise OSError(errno.ENOSPC, 'No space left on device')

  def write_config():
    config = tiny_config.get_config()
    workdirs.write_config(config, tmp_path, checkpoints(), False, print)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'write_bytes', write_half)
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

  def write(config, step=None, accept=False):
    workdirs.write_config(
      config, tmp_path, checkpoints(step), accept, lines.append
    )

  config = tiny_config.get_config()
  write(config)
  config.seed = 7
  write(config)  # nothing was trained: another config may follow
  config.seed = 8
  with pytest.raises(ValueError, match='seed: 7 > 8'):
    write(config, 4)
  saved = json.loads((tmp_path / 'config.json').read_text())
  assert saved['seed'] == 7 and not lines
  write(config, 4, accept=True)
  assert 'seed: 7 > 8' in lines[0]


@pytest.mark.parametrize('content', [None, '{"seed"', '\0'])
def test_a_config_that_is_lost(tmp_path, content):
  """That of the checkpoint takes its place, so that no change goes unseen."""
  config, lines = tiny_config.get_config(), []
  latest = checkpoints(4, config.to_dict())
  if content is not None:
    (tmp_path / 'config.json').write_text(content)
  workdirs.write_config(config, tmp_path, latest, False, lines.append)
  assert len(lines) == 1 and 'that of the checkpoint of step 4' in lines[0]
  (tmp_path / 'config.json').unlink()
  config.seed = 8
  with pytest.raises(ValueError, match='seed: 0 > 8'):
    workdirs.write_config(config, tmp_path, latest, False, lines.append)


def test_where_programs_are_kept(tmp_path, monkeypatch):
  before = jax.config.jax_compilation_cache_dir
  workdirs.cache_compilations(tmp_path)
  assert jax.config.jax_compilation_cache_dir == before  # as the user named it
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'home'))
  default = tmp_path / 'home' / 'sdxl_jax'
  workdir = tmp_path / 'run'
  workdir.mkdir()
  try:
    jax.config.update('jax_compilation_cache_dir', None)
    workdirs.cache_compilations(workdir)
    assert jax.config.jax_compilation_cache_dir == str(default)
    # Several processes share the folder of the workdir, which stays in use.
    with monkeypatch.context() as patch:
      patch.setattr(jax, 'process_count', lambda: 2)
      workdirs.cache_compilations(workdir)
    for _ in range(2):
      own = str(workdir / 'compiled')
      assert jax.config.jax_compilation_cache_dir == own
      workdirs.cache_compilations(workdir)
    monkeypatch.setenv('SDXL_JAX_CACHE', str(tmp_path / 'named'))
    workdirs.cache_compilations(workdir)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'named')
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()
