"""Commands, `python -m MODULE ...`, parsed and run within the tests."""

import contextlib
import pathlib
import runpy
import sys

import pytest
from absl import app, flags

from sdxl_jax import cli
from sdxl_jax.data import pipeline  # noqa: F401, grain's flags outlast a command

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def defined(module):
  """Defines the flags of a command in flags.FLAGS, and removes them after.

  Yields:
    (its main, the names of its arguments besides flags, or None for any).
  """
  known, mains = set(flags.FLAGS), []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      cli, 'run', lambda main, *names, memory='': mains.append((main, names))
    )
    patch.setattr(app, 'run', lambda main: mains.append((main, None)))
    patch.setattr(sys, 'argv', [module])
    try:
      path = ROOT.joinpath(*module.split('.')).with_suffix('.py')
      runpy.run_path(str(path), run_name='__main__')
      yield mains[0]
    finally:
      flags.FLAGS.unparse_flags()
      for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@contextlib.contextmanager
def parsed(module, arguments):
  """Parses the arguments of a command, into flags.FLAGS.

  Yields:
    A function without arguments that runs the command.

  Raises:
    flags.Error: for a flag that the command lacks, or a bad value.
    ValueError: for arguments besides flags that the command does not take.
  """
  with defined(module) as (main, names), pytest.MonkeyPatch.context() as patch:
    argv = [module, *arguments]
    patch.setattr(sys, 'argv', argv)  # where config flags look for fields
    rest = flags.FLAGS(argv)[1:]
    if names is None:  # absl's own way
      yield lambda: main([module, *rest])
      return
    cli.check_arguments(rest, names)
    yield lambda: main(flags.FLAGS, *rest)


def flag_names(module):
  """Returns the names of the flags that a command defines."""
  known = set(flags.FLAGS)
  with defined(module):
    return set(flags.FLAGS) - known
