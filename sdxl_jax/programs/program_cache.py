"""Keeps compiled programs in a folder, so that the next start compiles none.

JAX reads and writes the folder. It is chosen, bounded and mended here: JAX
writes a program in place, never replaces one that it cannot read, and bounds
the folder only under a lock that all processes take for each program.
"""

import contextlib
import importlib.util
import math
import os
import pathlib
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

VARIABLE = 'SDXL_JAX_CACHE'  # names the folder; empty: none
VARIABLE_OF_JAX = 'JAX_COMPILATION_CACHE_DIR'  # wins where it is set
# A program of the full-size UNet takes some tens of MB, and a run of all
# buckets has 41.
LIMIT = 10**10  # bytes at a start; the least recently used go
SUFFIX = '-cache'  # of the files that JAX writes
ZSTANDARD = b'\x28\xb5\x2f\xfd'  # begins its files, where it is installed
# JAX's default: which kernels were fastest, for programs that have them too.
XLA_CACHES = 'xla_gpu_per_fusion_autotune_cache_dir'
LONGEST = 200  # characters of a reason
# What JAX warns of; the program is compiled all the same.
PROBLEM = re.compile(
  r"Error (reading|writing) persistent compilation cache entry for '(.+?)': "
  r'(.*)',
  re.DOTALL,
)
# Folders that this process has used, to tell them from those of the user.
_used: set[str] = set()


def default_folder() -> pathlib.Path:
  """Returns sdxl_jax in the user's folder of caches, ~/.cache or XDG's.

  Raises:
    RuntimeError: where the user has no home.
  """
  base = os.environ.get('XDG_CACHE_HOME', '')
  if not os.path.isabs(base):  # as XDG's specification asks
    base = pathlib.Path.home() / '.cache'
  return pathlib.Path(base) / 'sdxl_jax'


def choose(folder: str | None) -> None:
  """Takes the folder of the flag --cache_dir, for child processes as well.

  Args:
    folder: '': none; None: the flag was not passed.
  """
  if folder is None:
    return
  of_jax = os.environ.get(VARIABLE_OF_JAX)
  if of_jax:
    warnings.warn(
      f'--cache_dir={folder} is not used, since {VARIABLE_OF_JAX} is set: '
      f'compiled programs are kept in {of_jax}',
      stacklevel=2,
    )
  os.environ[VARIABLE] = folder


def turn_on(otherwise: pathlib.Path | None = None) -> None:
  """Keeps programs in a folder, unless JAX was told what to do; see `is_free`.

  Args:
    otherwise: the folder where SDXL_JAX_CACHE names none; None: the default.
  """
  # On several GPUs the address of a function stands in each program with
  # cuDNN's attention; no two starts would have the same.
  jax.config.update('jax_remove_custom_partitioning_ptr_from_cache_key', True)
  named = os.environ.get(VARIABLE)
  if named == '' or not is_free():
    return
  place = named or otherwise
  try:
    use(pathlib.Path(place or default_folder()))
  except (OSError, RuntimeError) as error:
    warnings.warn(
      f'compiled programs are not kept, since {place or "~/.cache"} cannot be '
      f'written ({error}): pass another --cache_dir, or --cache_dir= for none',
      stacklevel=2,
    )


@contextlib.contextmanager
def unused() -> Iterator[None]:
  """Lets JAX neither read nor write programs while the context lasts."""
  was_enabled = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', was_enabled)
    compilation_cache.reset_cache()


def folder() -> str | None:
  """Returns the folder that keeps programs now, if there is one."""
  if jax.config.jax_enable_compilation_cache:
    return jax.config.jax_compilation_cache_dir or None
  return None


def is_free() -> bool:
  """Returns whether the choice of a folder was left to this program.

  JAX's own variable and options precede.
  """
  folder = jax.config.jax_compilation_cache_dir
  is_ours = not folder or folder in _used
  return is_ours and jax.config.jax_enable_compilation_cache


def use(folder: pathlib.Path) -> None:
  """Makes JAX keep all programs in a folder, however small.

  Raises:
    OSError: if it cannot be written.
  """
  folder = folder.expanduser().absolute()
  if jax.config.jax_compilation_cache_dir == str(folder):
    return
  # JAX runs what it reads there, so that nobody else may write to it.
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  probe = folder / f'.writable-{os.getpid()}'
  try:
    probe.write_bytes(b' ' * 4096)  # an empty file fits even on a full disk
  finally:
    probe.unlink(missing_ok=True)
  prune(folder, LIMIT)
  mend_what_is_broken()
  _used.add(str(folder))
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  # XLA's own caches, of what it measured on a GPU, write the folder's path into
  # the key of every program: a folder that was copied would be of no use.
  xla_caches = XLA_CACHES if folder == default_folder() else 'none'
  jax.config.update('jax_persistent_cache_enable_xla_caches', xla_caches)
  # JAX opens its cache once: without this, programs would go where an earlier
  # call in this process put them, or nowhere if it compiled without a cache.
  compilation_cache.reset_cache()


def prune(folder: pathlib.Path, limit: int) -> None:
  """Deletes the programs that were not used for longest, down to a limit.

  Args:
    folder: of the cache, which other processes may use.
    limit: bytes.
  """
  programs = []
  for path in folder.glob(f'*{SUFFIX}'):
    try:
      stat = path.stat()
    except FileNotFoundError:  # another process deleted it
      continue
    # Where reading leaves no trace, the oldest go.
    programs.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
  total = sum(size for _, size, _ in programs)
  for _, size, path in sorted(programs):
    if total <= limit:
      return
    path.unlink(missing_ok=True)
    total -= size


def mend_what_is_broken() -> None:
  """Mends the folder where JAX warns of it; each warning becomes one line."""
  show = warnings.showwarning
  if getattr(show, 'mends_programs', False):
    return

  def show_mended(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    problem = PROBLEM.match(str(message))
    show(mend(*problem.groups()) if problem else message, *args, **kwargs)

  show_mended.mends_programs = True
  warnings.showwarning = show_mended


def mend(action: str, module: str, reason: str) -> str:
  """Deletes broken programs and returns a line about it.

  Args:
    action: of JAX that failed, 'reading' or 'writing'.
    module: name of the program.
    reason: why.
  """
  folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
  # A process that was ended, or a full disk, leaves the beginning of a file.
  for path in folder.glob(f'{module}-*{SUFFIX}'):
    if not is_whole(path):
      path.unlink(missing_ok=True)
  reason = ' '.join(reason.split())[:LONGEST]
  if action == 'reading':
    return f'a program in {folder} is broken ({reason}): it is compiled again'
  # Nothing more is written, so that there is one line for all programs.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', math.inf)
  return (
    f'compiled programs are no longer kept in {folder} ({reason}): make room, '
    f'or name another folder by --cache_dir or {VARIABLE}'
  )


def is_whole(path: pathlib.Path) -> bool:
  """Returns whether a file of the cache can be decompressed."""
  try:
    content = path.read_bytes()
    decompress_by(content[: len(ZSTANDARD)])(content)
  except Exception:  # each library raises errors of its own
    return False
  return True


def decompress_by(magic: bytes) -> Callable[[bytes], bytes]:
  """Returns the function that decompresses what begins with these bytes."""
  if magic != ZSTANDARD:
    return zlib.decompress
  # JAX takes the one of Python 3.14, or else the package.
  if importlib.util.find_spec('compression') is not None:
    return importlib.import_module('compression.zstd').decompress
  return importlib.import_module('zstandard').decompress
