"""Commands that a notebook runs: their output, their end, and interruptions."""

import os
import signal
import sys
import threading
import time

import pytest

from launch.notebooks import commands

# Saves on a signal as training does.
TRAINING = """
import signal, sys, time
def save(number, frame):
  print('saved on', number, flush=True)
  sys.exit(130 if number == signal.SIGINT else 0)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
print('ready', flush=True)
time.sleep(60)
"""


def python(code):
  return [sys.executable, '-c', code]


def test_output_is_shown_as_it_comes(capsys):
  seen = []
  code = (
    'import sys, time; print("löss 1"); time.sleep(0.2); '
    'print("\\r50 %", end="", file=sys.stderr)'
  )
  watch = lambda: seen.append(capsys.readouterr().out)  # noqa: E731
  assert commands.stream(python(code), watch=watch) == 0
  assert ''.join(seen) == 'löss 1\n\r50 %'
  assert '50 %' not in seen[0]


def test_a_command_finds_the_package_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert commands.stream(python('import sdxl_jax, configs.lora')) == 0


def test_time_is_up(capsys):
  assert commands.stream(python(TRAINING), hours=2 / 3600) == 0
  assert f'saved on {int(signal.SIGTERM)}' in capsys.readouterr().out


@pytest.fixture
def kernel():
  """Handles SIGINT as a notebook's kernel, whatever other tests have left."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures('kernel')
def test_an_interrupted_cell_saves(capsys):
  """One Ctrl-C for the command, and the cell ends after it."""
  main = threading.main_thread().ident
  interrupted = []

  def interrupt():
    if not interrupted:
      interrupted.append(time.monotonic())
      signal.pthread_kill(main, signal.SIGINT)

  with pytest.raises(KeyboardInterrupt):
    commands.stream(python(TRAINING), watch=interrupt)
  printed = capsys.readouterr().out
  assert printed.count('saved on') == 1
  assert f'saved on {int(signal.SIGINT)}' in printed


def test_a_failing_watch_ends_the_command(tmp_path):
  file = tmp_path / 'pid'
  code = f'import os; open({str(file)!r}, "w").write(str(os.getpid()))\n'

  def fail():
    raise OSError('full')

  with pytest.raises(OSError, match='full'):
    commands.stream(python(code + TRAINING), watch=fail)
  with pytest.raises(ProcessLookupError):
    os.kill(int(file.read_text()), 0)


def test_a_failure_is_one_sentence(monkeypatch):
  monkeypatch.setattr(commands, 'stream', lambda *args: 3)
  with pytest.raises(SystemExit, match='sdxl_jax.train ended with 3'):
    commands.run('train')
