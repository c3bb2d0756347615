"""Entry point of all commands: parses flags, and prints errors as one line."""

import logging
import os
import pathlib
import re
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging

from sdxl_jax.distributed import gpu_memory, multihost
from sdxl_jax.programs import compile_progress, program_cache

# So that flags defined here are listed by --help as those of the command.
flags.disclaim_key_flags()

# What XLA's errors say where the memory of a device is exhausted.
OUT_OF_MEMORY = r'RESOURCE_EXHAUSTED|OUT_OF_MEMORY|[Oo]ut of memory'
LONGEST = 500  # characters of an error of a library
FAULT = 'this is a fault of the program or of a library'


def run(main: Callable, *names: str, memory: str = '') -> None:
  """Runs main(flags, *arguments); an error ends the command with one line.

  A command that compiles programs defines the flag of `define_cache_dir`.

  Args:
    main: raises ValueError or OSError with a message that names the remedy.
    names: of the positional arguments.
    memory: what to do where the memory of a device is exhausted.
  """
  if 'debug' not in flags.FLAGS:
    flags.DEFINE_bool('debug', False, 'show the traceback of an error')

  def run_main(argv):
    silence_orbax()
    handle_lost_errors()
    warnings.formatwarning = format_warning
    warnings.simplefilter('once', UserWarning)  # wherever it is raised
    # Ctrl-C ended the process while it imported, see sdxl_jax/__init__.py.
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      check_arguments(argv[1:], names)
      gpu_memory.enlarge()
      if 'cache_dir' in flags.FLAGS:
        program_cache.choose(flags.FLAGS.cache_dir)
        compile_progress.show()
      main(flags.FLAGS, *argv[1:])
      sys.stdout.flush()
      multihost.end(0)
    except KeyboardInterrupt as error:
      multihost.interrupt(error)
    except Exception as error:
      end(error, memory)

  app.run(run_main, flags_parser=parse_flags)


def define_cache_dir() -> None:
  """Defines the flag of the folder of compiled programs."""
  flags.DEFINE_string(
    'cache_dir',
    None,
    'folder that keeps compiled programs; empty: none; default: the one of '
    f'{program_cache.VARIABLE}, or ~/.cache/sdxl_jax',
  )


def silence_orbax() -> None:
  """Silences log lines and tracebacks of errors that orbax also raises."""
  # It logs verbosely, and its threads and tasks log errors with tracebacks.
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  # After one failed write, the others end in a loop that is closed already.
  warnings.filterwarnings('ignore', r'coroutine .* was never awaited')


def handle_lost_errors() -> None:
  """Decides on errors that callbacks raise, which Python would only print."""
  print_error = sys.unraisablehook

  def handle(lost):
    error = lost.exc_value
    # One of JAX swallowed Ctrl-C: interrupt once more, outside of it.
    if isinstance(error, KeyboardInterrupt):
      again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
      again.daemon = True
      again.start()
    # Of a write of orbax, after another one failed.
    elif 'Event loop is closed' not in str(error):
      print_error(lost)

  sys.unraisablehook = handle


def end(error: Exception, memory: str) -> NoReturn:
  """Ends this process with one line about an error, and exit code 1.

  Args:
    error: that ended the command.
    memory: see `run`.
  """
  show_if_debugging(error)
  # As `head` does, which reads no more than it prints; shells expect this code.
  if isinstance(error, BrokenPipeError) and output_is_closed():
    multihost.end(128 + signal.SIGPIPE)
  # With several processes, JAX reports a lost peer as a failed step.
  is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if is_of_jax and jax.process_count() > 1:
    multihost.abort(
      'error: a step failed, most likely because another process is gone; '
      'see its log. What was saved is intact: run the same command again in '
      f'all processes. JAX reports: {str(error)[:LONGEST]}',
      multihost.EXIT_PEER_LOST,
    )
  multihost.abort(f'error: {describe(error, memory)}')


def describe(error: Exception, memory: str) -> str:
  """Returns the message for an error: what is wrong, and what to do.

  Args:
    error: of this program, or of a library that it calls.
    memory: what to do where the memory of a device is exhausted.
  """
  if isinstance(error, (ValueError, OSError)):
    return str(error) if is_ours(error) else in_one_line(error)
  text = ' '.join(str(error).split())[:LONGEST]
  is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
  if is_of_jax and re.search(OUT_OF_MEMORY, str(error)):
    remedy = memory or 'use a device with more memory'
    return (
      f'the memory of the device is exhausted: {remedy}. JAX reports: {text}'
    )
  if isinstance(error, MemoryError):
    return (
      "the host's memory is exhausted: end other programs, or use a machine "
      f'with more ({text or "Python reports no size"})'
    )
  line = f'{type(error).__name__}: {text}' if text else type(error).__name__
  hint = '' if shows_tracebacks() else '; --debug shows the traceback'
  return f'{line} ({FAULT}{hint})'


def is_ours(error: Exception) -> bool:
  """Returns whether this program raised an error, which may list things."""
  frames = traceback.extract_tb(error.__traceback__)
  package = pathlib.Path(__file__).parent
  return bool(frames) and package in pathlib.Path(frames[-1].filename).parents


def in_one_line(error: Any) -> str:
  """Joins the lines of an error's message."""
  lines = (line.strip() for line in str(error).splitlines())
  return '; '.join(filter(None, lines))


def shows_tracebacks() -> bool:
  """Returns whether --debug was passed, even where other flags are wrong."""
  values = flags.FLAGS
  return values.debug if values.is_parsed() else '--debug' in sys.argv


def output_is_closed() -> bool:
  """Returns whether nothing reads what this process prints any more."""
  poll = select.poll()
  for descriptor in (1, 2):  # stdout and stderr
    poll.register(descriptor, 0)  # errors are always reported
  return any(event & select.POLLERR for _, event in poll.poll(0))


_format_of_python = warnings.formatwarning


def format_warning(
  message: Warning | str,
  category: type[Warning],
  filename: str,
  lineno: int,
  line: str | None = None,
) -> str:
  """Formats what is for the user as one line, without its place in the code."""
  if issubclass(category, UserWarning):
    return warning_line(message)
  return _format_of_python(message, category, filename, lineno, line)


def warning_line(message: Warning | str) -> str:
  """Returns the line that is printed for a warning."""
  return f'warning: {message}\n'


def check_arguments(arguments: Sequence[str], names: Sequence[str]) -> None:
  """Raises ValueError unless there is one argument for each name."""
  if len(arguments) != len(names):
    raise ValueError(
      f'besides flags, pass {" and ".join(names) or "nothing"}, not '
      f'{" ".join(arguments) or "nothing"}; --help lists the flags'
    )


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags as absl does; an error of a config is one line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:
    show_if_debugging(error)
    while isinstance(error, Exception):  # an error may wrap another
      error = error.args[0] if error.args else type(error).__name__
    sys.exit(
      f'error: {in_one_line(error)}: the config has no such '
      'field, or it has another type; configs/default.py lists them all'
    )
  # A config file is a program, which may raise anything.
  except Exception as error:
    show_if_debugging(error)
    text = ' '.join(str(error).split())[:LONGEST]
    sys.exit(
      f'error: the config cannot be read: {type(error).__name__}: {text}; '
      '--debug shows the traceback'
    )


def show_if_debugging(error: Exception) -> None:
  """Prints the traceback of an error where --debug was passed."""
  if shows_tracebacks():
    traceback.print_exception(error)
