"""Runs the package's commands from a notebook, with their output in its cell.

Each command is a process of its own: it has the device to itself, and gives it
back when it ends. The notebook must not use JAX then.
"""

import codecs
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(
  verb: str,
  *arguments: Any,
  hours: float | None = None,
  watch: Callable[[], Any] | None = None,
) -> None:
  """Runs python -m sdxl_jax.VERB, and shows what it prints.

  Args:
    verb: 'train', 'sample', ...
    *arguments: of the command.
    hours: after which it gets SIGTERM: training saves a checkpoint and ends.
    watch: called after each piece of output, and at the end.

  Raises:
    KeyboardInterrupt: the cell was interrupted; training has saved.
    SystemExit: the command failed, in one sentence.
  """
  command = [sys.executable, '-m', f'sdxl_jax.{verb}', *map(str, arguments)]
  code = stream(command, hours, watch)
  if code:
    raise SystemExit(f'sdxl_jax.{verb} ended with {code}: see above')


def stream(
  command: Sequence[str],
  hours: float | None = None,
  watch: Callable[[], Any] | None = None,
) -> int:
  """Runs a command and prints its output as it comes; returns its exit code.

  Arguments are as for `run`. It starts in a session of its own, so that an
  interrupted cell sends it one Ctrl-C, on which training saves, and no second.
  """
  paths = [str(ROOT), os.environ.get('PYTHONPATH')]
  process = subprocess.Popen(
    command,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env={
      **os.environ,
      'PYTHONPATH': os.pathsep.join(filter(None, paths)),
      'PYTHONUNBUFFERED': '1',
    },
    start_new_session=True,
  )
  timer = None
  if hours is not None:
    timer = threading.Timer(max(0.0, 3600 * hours), process.terminate)
    timer.daemon = True
    timer.start()
  try:
    try:
      follow(process, watch)
    except KeyboardInterrupt:
      process.send_signal(signal.SIGINT)
      follow(process, watch)
      raise
    return process.returncode
  finally:
    if timer:
      timer.cancel()
    if process.poll() is None:
      process.terminate()
      process.wait()


def follow(process: subprocess.Popen, watch: Callable[[], Any] | None) -> None:
  """Prints the output of a process until it ends."""
  # A piece may end within a character. Bars return to the start of the line,
  # so that lines cannot be waited for.
  decode = codecs.getincrementaldecoder('utf-8')('replace').decode
  while piece := os.read(process.stdout.fileno(), 1 << 16):
    print(decode(piece), end='', flush=True)
    if watch:
      watch()
  process.wait()
  if watch:
    watch()
