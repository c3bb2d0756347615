"""A lock by which one process builds an index, and others wait for it."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import filelock

TIMEOUT_S = 24 * 3600  # for an index that another process builds
POLL_S = 0.1  # between attempts to acquire the lock


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[None]:
  """Holds a lock file while the caller builds an index.

  The operating system releases the lock of a process that dies, an NFS server
  that of a machine that dies. The file stays: to remove it would let a process
  that waits for it and one that comes later both hold the lock.

  Raises:
    TimeoutError: after TIMEOUT_S of waiting.
    OSError: if the file system has no locks.
  """
  # Other users of a shared folder must be able to open the file.
  lock = filelock.FileLock(path, mode=0o666)
  try:
    lock.acquire(blocking=False)
  except filelock.Timeout:
    logging.warning('another process builds the index; waiting for %s', path)
    wait_for(lock)
  except NotImplementedError as error:
    raise OSError(
      f'{path}: the file system has no locks (flock), which keep two processes '
      'from building one index: mount it with locks, or update filelock, which '
      'can do without'
    ) from error
  try:
    yield
  finally:
    lock.release()


def wait_for(lock: filelock.BaseFileLock) -> None:
  """Acquires a lock that another process holds."""
  try:
    lock.acquire(TIMEOUT_S, poll_interval=POLL_S)
  except filelock.Timeout as error:
    raise TimeoutError(
      f'{lock.lock_file} was locked for {TIMEOUT_S / 3600:.3g} hours, the '
      'limit for waiting: stop the process that builds the index, and run again'
    ) from error
