"""The lock by which one command at a time writes to a folder.

lock.json in it names the process that holds it, which touches the file every
few seconds. Locks of the operating system would not do: many file systems that
hosts share have none, or none that reach another host. A holder on this machine
is looked up among its processes; one elsewhere is dead once the file has not
been touched for a minute by the clock of the file system.
"""

import contextlib
import datetime
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from sdxl_jax.distributed import multihost

FILE = 'lock.json'
FIELDS = ('pid', 'host', 'since', 'machine', 'started', 'token')
BEAT_S = 5  # between two touches
DEAD_S = 60  # without a touch, of a holder on another machine
POLL_S = 1  # between two looks at a file that may be touched
SETTLE_S = 0.2  # in which a file that was moved is back
WRITE_S = 2  # in which a new file has its content


class FolderLost(OSError):
  """The folder is gone, or another command has taken it over."""


class FolderLock:
  """Holds the lock of a folder, from `acquire` to `release`.

  Args:
    folder: to lock, such as the workdir of a run.
    flag: by which the command names it, for the error.
  """

  def __init__(self, folder: pathlib.Path, flag: str):
    self.folder, self.path, self.flag = folder, folder / FILE, flag
    self.holder = {
      'pid': os.getpid(),
      'host': socket.gethostname(),
      'since': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
      'machine': machine(),
      'started': '',
      'token': secrets.token_hex(8),
    }
    with contextlib.suppress(OSError):  # without /proc ids alone are compared
      self.holder['started'] = start_of(os.getpid())
    self._lost, self._released = '', threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)

  def acquire(self, say: Callable[[str], Any]) -> None:
    """Takes the lock, also that of a dead holder.

    Args:
      say: prints a line for the user.

    Raises:
      ValueError: if a living process holds it, which is named.
    """
    while not self._has_settled():
      holder = self._read()
      if holder is None:  # released just now
        continue
      if self._is_alive(holder, say):
        raise ValueError(self._refusal(holder))
      if self._remove(holder):
        say(
          f'took {self.folder} over from {describe(holder)}, which ended '
          'without releasing it'
        )
    self._thread.start()

  def check(self) -> None:
    """Raises FolderLost if this process may no longer write to the folder."""
    if self._lost:
      raise FolderLost(self._lost)

  def release(self) -> None:
    """Removes the lock, unless it is no longer that of this process."""
    self._released.set()
    if self._thread.is_alive():
      self._thread.join()
    with contextlib.suppress(OSError):
      if self._is_own(self._read()):
        self.path.unlink()

  def _has_settled(self) -> bool:
    """Creates the file, if there is none; returns whether it is our own.

    Of several that take over at once, one may have moved the file of another
    for a moment, in which a third one creates its own: the last to lie there
    counts.
    """
    if self._create():
      time.sleep(SETTLE_S)
    return self._is_own(self._read())

  def _create(self) -> bool:
    """Creates the file, unless it exists."""
    try:
      with open(self.path, 'x') as file:
        json.dump(self.holder, file)
    except FileExistsError:
      return False
    return True

  def _read(self) -> dict[str, Any] | None:
    """Reads who holds the lock: {} if that is unreadable, None if nobody."""
    end = time.monotonic() + WRITE_S
    while True:
      try:
        holder = parse(self.path.read_bytes())
      except FileNotFoundError:
        return None
      # A new file is empty until its process has written it.
      if holder or time.monotonic() > end:
        return holder
      time.sleep(0.1)

  def _is_own(self, holder):
    return bool(holder) and holder.get('token') == self.holder['token']

  def _is_alive(self, holder, say) -> bool:
    if holder.get('machine') == self.holder['machine']:
      return is_running(holder['pid'], holder['started'])
    # One elsewhere has touched the file lately, or does so while we watch.
    if (touched := self._touched()) is None:
      return False
    # A folder that was copied, or a clock that went wrong, may date the file
    # in the future: nobody waits longer for it.
    wait = min(DEAD_S, DEAD_S - (self._file_system_time() - touched))
    if wait > 0:
      say(
        f'{self.folder} is held by {describe(holder)}; waiting up to '
        f'{wait:.0f} s to see whether that still runs'
      )
    end = time.monotonic() + wait
    while time.monotonic() < end:
      time.sleep(POLL_S)
      if (now := self._touched()) != touched:
        return now is not None  # None: released
    return False

  def _touched(self) -> float | None:
    """Returns when the file was touched last, None if there is none."""
    try:
      return self.path.stat().st_mtime
    except FileNotFoundError:
      return None

  def _file_system_time(self) -> float:
    """Returns the time by the clock that dates the files of the folder."""
    probe = self.path.with_name(f'.{FILE}.{self.holder["token"]}')
    probe.touch()
    try:
      return probe.stat().st_mtime
    finally:
      probe.unlink()

  def _remove(self, holder) -> bool:
    """Removes a dead holder's file; returns whether this process did so."""
    aside = self.path.with_name(f'.{FILE}.{self.holder["token"]}')
    try:
      os.rename(self.path, aside)  # of several that try, one succeeds
    except FileNotFoundError:
      return False
    if parse(aside.read_bytes()).get('token') != holder.get('token'):
      os.rename(aside, self.path)  # another process has taken it in between
      return False
    aside.unlink()
    return True

  def _refusal(self, holder) -> str:
    text = (
      f'{self.folder} is in use by {describe(holder)}. Two commands '
      "that write to one folder would destroy each other's files: wait until "
      f'it ends, stop it, or pass another {self.flag}'
    )
    if holder.get('machine') != self.holder['machine']:
      text += (
        f'. If that machine is gone, try again {DEAD_S} s after its end, or '
        f'remove {self.path}'
      )
    return text

  def _beat(self):
    """Touches the file until the release, in a thread."""
    while not self._released.wait(BEAT_S) and not self._lost:
      # What cannot be read or written now may be later; what is saved shows it.
      with contextlib.suppress(OSError):
        holder = self._read()
        if self._is_own(holder):
          os.utime(self.path)
        elif holder is not None:
          self._lost = (
            f'{describe(holder)} has taken {self.folder} over, so this one '
            'writes nothing more to it'
          )
        elif not self.folder.is_dir():
          self._lost = (
            f'{self.folder} has vanished: mount or restore it, and run the '
            'same command again'
          )
        else:
          self._create()  # removed by hand


def hold(
  folder: pathlib.Path, say: Callable[[str], Any], flag: str
) -> FolderLock:
  """Locks a folder for a command, all processes of which share it.

  Args:
    folder: to lock.
    say: prints a line for the user.
    flag: by which the command names the folder, for the error.

  Returns:
    The lock, which only the primary process holds.

  Raises:
    ValueError: in all processes, if another command holds it.
  """
  lock = FolderLock(folder, flag)
  multihost.on_primary(lambda: lock.acquire(say))
  return lock


def parse(content: bytes) -> dict[str, Any]:
  """Reads the content of a lock file; {} if it is not one."""
  try:
    holder = json.loads(content)
    holder = {field: holder[field] for field in FIELDS}
  except (ValueError, KeyError, TypeError):
    return {}
  return holder if type(holder['pid']) is int else {}


def describe(holder: dict[str, Any]) -> str:
  """Names the process that holds a lock."""
  if not holder:
    return f'a process that left an unreadable {FILE}'
  return f'process {holder["pid"]} on {holder["host"]}, since {holder["since"]}'


def machine() -> str:
  """Returns what two processes have in common whose ids can be compared."""
  try:
    # The boot of this machine, and the container within it.
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux
    return socket.gethostname()


def start_of(pid: int) -> str:
  """Returns when a process of this machine started, in ticks since boot.

  Raises:
    OSError: if there is no such process, or no /proc.
  """
  status = pathlib.Path(f'/proc/{pid}/stat').read_text()
  # State and start, counted from the end of the name, which may have spaces.
  state, *fields = status.rpartition(')')[2].split()
  if state in 'ZX':
    raise ProcessLookupError(f'process {pid} has ended')
  return fields[18]


def is_running(pid: int, started: str) -> bool:
  """Whether a process of this machine runs, and not a later one of its id."""
  with contextlib.suppress(OSError):
    return start_of(pid) == started
  # It has ended, or is not shown to this user.
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return not started or not pathlib.Path('/proc/self/stat').exists()
