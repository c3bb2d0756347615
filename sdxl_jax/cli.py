"""Entry point of all commands: parses flags, and prints errors as one line."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

import jax
from absl import app, flags
from absl import logging as absl_logging

from sdxl_jax.distributed import multihost


def run(main: Callable, *names: str) -> None:
  """Runs main(flags, *arguments); bad input ends the command with one line.

  Args:
    main: raises ValueError or OSError with a message that names the remedy.
    names: of the positional arguments.
  """

  def run_main(argv):
    # orbax logs verbosely, and its threads and tasks log with a traceback each
    # what it raises as well.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    warnings.formatwarning = format_warning
    warnings.simplefilter('once', UserWarning)  # wherever it is raised
    # Ctrl-C ended the process while it imported, see sdxl_jax/__init__.py.
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
      signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
      check_arguments(argv[1:], names)
      main(flags.FLAGS, *argv[1:])
    except (ValueError, OSError) as error:
      multihost.abort(f'error: {error}')
    except KeyboardInterrupt as error:
      multihost.interrupt(error)
    # With several processes, JAX reports a lost peer as a failed step.
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1:
        raise
      multihost.abort(
        'error: a step failed, most likely because another process is gone; '
        'see its log. What was saved is intact: run the same command again in '
        f'all processes. JAX reports: {str(error)[:500]}',
        multihost.EXIT_PEER_LOST,
      )

  app.run(run_main, flags_parser=parse_flags)


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
    return f'warning: {message}\n'
  return _format_of_python(message, category, filename, lineno, line)


def check_arguments(arguments: Sequence[str], names: Sequence[str]) -> None:
  """Raises ValueError unless there is one argument for each name."""
  if len(arguments) != len(names):
    raise ValueError(
      f'besides flags, pass {" and ".join(names) or "nothing"}, not '
      f'{" ".join(arguments) or "nothing"}; --help lists the flags'
    )


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags as absl does; an unknown config field is a one-line error."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:
    while isinstance(error, Exception):  # an error may wrap another
      error = error.args[0]
    sys.exit(
      f'error: {"; ".join(str(error).splitlines())}: the config has no such '
      'field, or it has another type; configs/default.py lists them all'
    )
