"""What all commands share: flags that explain themselves, and a last line."""

import sys

import jax
from absl import app, flags, logging

from sdxl_jax.distributed import multihost


def run(main, *names):
  """Runs main(flags, *arguments); bad input ends it with one line.

  Args:
    main: raises ValueError or OSError with that line, which says what to do.
    names: of the arguments that are no flags.
  """

  def whole(argv):
    logging.set_verbosity(logging.ERROR)  # orbax tells much
    try:
      check_arguments(argv[1:], names)
      main(flags.FLAGS, *argv[1:])
    except (ValueError, OSError) as error:
      multihost.abort(f'error: {error}')
    except jax.errors.JaxRuntimeError as error:
      if jax.process_count() == 1:
        raise
      multihost.abort(
        'error: a step failed, most likely since another process is gone; see '
        'its log. What was saved is intact: run the same command again in all '
        f'processes. JAX says: {str(error)[:500]}',
        multihost.EXIT_PEER_LOST,
      )

  app.run(whole, flags_parser=parse_flags)


def check_arguments(given, names):
  if len(given) != len(names):
    raise ValueError(
      f'besides flags, {" and ".join(names) or "nothing"} must be given, not '
      f'{" ".join(given) or "nothing"}; --help lists the flags'
    )


def parse_flags(argv):
  """As absl does, but an unknown field of the config is one line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:
    while isinstance(error, Exception):  # one may hold another
      error = error.args[0]
    sys.exit(
      f'error: {"; ".join(str(error).splitlines())}: the config has no such '
      'field, or it has another type; configs/default.py lists them all'
    )
