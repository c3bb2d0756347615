"""Which of several runs may write to a workdir."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from sdxl_jax.training import folder_lock

SLEEP = [sys.executable, '-c', 'import time; time.sleep(600)']


def acquire(workdir, lines=None):
  lines = [] if lines is None else lines
  lock = folder_lock.FolderLock(workdir, '--workdir')
  lock.acquire(lines.append)
  return lock


def write_holder(workdir, **changes):
  """Writes the lock of another process, as that process would."""
  holder = folder_lock.FolderLock(workdir, '--workdir').holder
  holder |= {'token': 'other', **changes}
  (workdir / 'lock.json').write_text(json.dumps(holder))
  return holder


def test_a_second_run_is_told_who_holds_the_workdir(tmp_path):
  lock = acquire(tmp_path)
  message = rf'in use by process {os.getpid()} on .*, since 20\d\d-.*--workdir$'
  with pytest.raises(ValueError, match=message):
    acquire(tmp_path)
  lock.release()
  assert not list(tmp_path.iterdir())
  acquire(tmp_path).release()


def test_a_dead_holder_is_replaced(tmp_path):
  """Also one whose id another process has, or that nobody waited for."""
  with subprocess.Popen(SLEEP) as process:
    started = folder_lock.start_of(process.pid)
    write_holder(tmp_path, pid=process.pid, started=started)
    with pytest.raises(ValueError, match=f'process {process.pid} on'):
      acquire(tmp_path)
    write_holder(tmp_path, pid=process.pid, started='5')
    lines = []
    acquire(tmp_path, lines).release()
    assert f'over from process {process.pid}' in lines[0]
    write_holder(tmp_path, pid=process.pid, started=started)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    acquire(tmp_path).release()


def test_a_holder_on_another_host(tmp_path, monkeypatch):
  """Lives as long as it touches the file, by the clock of the file system."""
  monkeypatch.setattr(folder_lock, 'DEAD_S', 2)
  monkeypatch.setattr(folder_lock, 'POLL_S', 0.05)
  write_holder(tmp_path, host='node7', machine='another boot', pid=1)
  path, lines = tmp_path / 'lock.json', []
  threading.Timer(0.3, os.utime, [path]).start()
  with pytest.raises(ValueError, match='on node7.*If that machine is gone'):
    acquire(tmp_path, lines)
  assert 'waiting up to 2 s' in lines[0]
  time.sleep(0.5)
  start, lines = time.monotonic(), []
  acquire(tmp_path, lines).release()
  assert time.monotonic() - start > 1 and 'over from' in lines[-1]
  # Long dead: nothing to wait for.
  write_holder(tmp_path, machine='another boot')
  os.utime(path, (1, 1))
  lines = []
  acquire(tmp_path, lines).release()
  assert len(lines) == 1
  # Dated in the future, by a copy or a wrong clock.
  write_holder(tmp_path, machine='another boot')
  os.utime(path, (2**32, 2**32))
  lines = []
  acquire(tmp_path, lines).release()
  assert 'waiting up to 2 s' in lines[0] and 'over from' in lines[-1]


@pytest.mark.parametrize('content', [b'', b'{"pid": 1', b'[]', b'\xff\0'])
def test_a_lock_that_nobody_finished(tmp_path, monkeypatch, content):
  monkeypatch.setattr(folder_lock, 'WRITE_S', 0.1)
  (tmp_path / 'lock.json').write_bytes(content)
  os.utime(tmp_path / 'lock.json', (1, 1))
  acquire(tmp_path).release()


def test_a_lock_without_the_id_of_a_process(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lock, 'WRITE_S', 0.1)
  write_holder(tmp_path, pid='none')
  os.utime(tmp_path / 'lock.json', (1, 1))
  acquire(tmp_path).release()


def test_of_many_that_start_at_once_one_runs(tmp_path):
  """Over the lock of a dead holder."""
  write_holder(tmp_path, pid=1, started='never')
  held, refused = [], []

  def start():
    try:
      held.append(acquire(tmp_path))
    except ValueError as error:
      refused.append(error)

  threads = [threading.Thread(target=start) for _ in range(12)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (len(held), len(refused)) == (1, 11)
  held[0].check()
  held[0].release()


def test_a_file_that_is_put_back(tmp_path, monkeypatch):
  """Over the lock of one that a third process had moved for a moment."""
  first = acquire(tmp_path)
  file = tmp_path / folder_lock.FILE
  content = file.read_bytes()
  file.unlink()  # moved: another one creates its own meanwhile
  settle = time.sleep
  monkeypatch.setattr(
    folder_lock.time,
    'sleep',
    lambda seconds: (file.write_bytes(content), settle(0)),
  )
  with pytest.raises(ValueError, match='is in use by'):
    acquire(tmp_path)
  monkeypatch.undo()
  first.check()
  first.release()


def test_a_workdir_that_is_lost(tmp_path, monkeypatch):
  """Removed, or taken over while this process slept: it writes no more."""
  monkeypatch.setattr(folder_lock, 'BEAT_S', 0.02)
  workdir = tmp_path / 'run'

  def wait(lock):
    end = time.monotonic() + 10
    while time.monotonic() < end:
      lock.check()
      time.sleep(0.02)

  for loss, message in (
    (lambda: write_holder(workdir, pid=5), 'process 5 on .* has taken'),
    (lambda: os.rename(workdir, tmp_path / 'gone'), 'run has vanished'),
  ):
    workdir.mkdir()
    lock = acquire(workdir)
    loss()
    with pytest.raises(folder_lock.FolderLost, match=message):
      wait(lock)
    lock.release()
    if workdir.exists():
      assert json.loads((workdir / 'lock.json').read_text())['pid'] == 5
      (workdir / 'lock.json').unlink()
      workdir.rmdir()


def test_a_lock_removed_by_hand_is_made_again(tmp_path, monkeypatch):
  monkeypatch.setattr(folder_lock, 'BEAT_S', 0.02)
  lock = acquire(tmp_path)
  (tmp_path / 'lock.json').unlink()
  end = time.monotonic() + 10
  while not (tmp_path / 'lock.json').exists() and time.monotonic() < end:
    time.sleep(0.02)
  with pytest.raises(ValueError, match='in use'):
    acquire(tmp_path)
  lock.check()
  lock.release()
