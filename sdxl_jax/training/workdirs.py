"""The folder that a run writes to and resumes from, the same for all hosts."""

import json
import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

from sdxl_jax.distributed import multihost
from sdxl_jax.training import config_diff


def make(workdir):
  """The folder, made and known to be writable."""
  if '://' in str(workdir):
    raise ValueError(
      f'workdir {workdir} is a URL; give a folder that all hosts see, such as '
      'the bucket mounted with gcsfuse'
    )
  workdir = pathlib.Path(workdir).absolute()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f'.writable-{jax.process_index()}'
    probe.write_bytes(b' ' * 4096)  # a full disk takes empty files
    probe.unlink()
  except OSError as error:
    raise ValueError(
      f'workdir {workdir} cannot be written ({error}): give another folder'
    ) from error
  return workdir


def write_config(config, workdir, first, accept_changes, say):
  """Saves the config; if the workdir has checkpoints, it must suit them."""
  path = workdir / 'config.json'
  new = json.loads(config.to_json())
  if path.exists() and first:
    old = json.loads(path.read_text())
    config_diff.check_changes(old, new, workdir, accept_changes, say)
  multihost.barrier('every process has read the old config')
  if multihost.is_primary():
    replace(path, json.dumps(new, indent=2) + '\n')


def replace(path, text):
  """Writes a file anew, or leaves the old one whole."""
  new = path.with_name(path.name + '.new')
  new.write_text(text)
  new.replace(path)


def cache_compilations(workdir):
  """Compiled programs survive the run, so that resuming starts at once.

  They go into the workdir, or where JAX_COMPILATION_CACHE_DIR has them go.
  """
  if os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    return
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  # XLA's own caches write the folder's path into the key of every program, so
  # that a workdir that was copied or moved would compile all of them again.
  jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')
  # JAX opens its cache once: without this, programs would go where an earlier
  # run in this process put them, or nowhere if it compiled without a cache.
  compilation_cache.reset_cache()
