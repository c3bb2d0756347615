"""Bad flags end a command with a line that says what to do."""

import functools
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  'module, flag, message',
  [
    ('train', '--config.no_such_field=1', "no_such_field': the config has no"),
    ('train', '--config.caption_dropout=2.0', 'caption_dropout is 2.0'),
    ('precompute', '--config.data.sauce=1', "'sauce': the config has no"),
  ],
)
def test_errors_fit_a_screen(module, flag, message, tmp_path):
  command = [sys.executable, '-m', f'sdxl_jax.{module}']
  command += ['--config', 'tests/support/tiny_config.py', flag]
  command += ['--workdir' if module == 'train' else '--output', tmp_path]
  run = subprocess.run(command, capture_output=True, text=True)
  assert run.returncode != 0
  assert message in run.stderr
  assert 'Traceback' not in run.stderr and run.stderr.count('\n') < 5


def test_ctrl_c_while_libraries_are_imported():
  """Ends the command at once, without a traceback out of a library."""
  command = [sys.executable, '-v', '-m', 'sdxl_jax.train']
  # Shells make commands in the background, as these tests may be, ignore it.
  heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
  with subprocess.Popen(
    command, stderr=subprocess.PIPE, text=True, preexec_fn=heed
  ) as run:
    for line in run.stderr:
      if line.startswith("import 'jax"):
        break
    run.send_signal(signal.SIGINT)
    output = run.communicate()[1]
  assert run.returncode == -signal.SIGINT and 'Traceback' not in output


def test_errors_after_a_failed_write_are_silent():
  # What orbax's other writes raise in a loop that is closed; and another error.
  code = (
    'from sdxl_jax import cli; cli.silence_orbax()\n'
    'class Late:\n'
    '  def __init__(self, words): self.words = words\n'
    '  def __del__(self): raise RuntimeError(self.words)\n'
    'Late("Event loop is closed"); Late("something else")\n'
    'async def write(): pass\n'
    'write()'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert 'something else' in done.stderr
  assert 'closed' not in done.stderr and 'awaited' not in done.stderr
