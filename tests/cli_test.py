"""Bad flags end a command with a line that says what to do."""

import functools
import os
import signal
import subprocess
import sys

import jax
import pytest
from absl import flags

from sdxl_jax import cli
from sdxl_jax.distributed import gpu_memory


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
    'from sdxl_jax import cli\n'
    'cli.silence_orbax(); cli.handle_lost_errors()\n'
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


def test_an_interrupt_that_a_callback_swallowed():
  """Python drops what a callback raises, and would go on."""
  run = run_code(
    'import signal, time\n'
    '  signal.signal(signal.SIGINT, signal.default_int_handler)\n'
    '  class Swallow:\n'
    '    def __del__(self): raise KeyboardInterrupt\n'
    '  Swallow(); time.sleep(20)'
  )
  assert run.returncode == 130 and 'Traceback' not in run.stderr
  assert 'stopped by Ctrl-C' in run.stderr


class Ended(Exception):
  """What ended a command: its exit code, or the message."""


@pytest.fixture
def end(monkeypatch):
  """Runs a main that raises an error; returns the exit and its line."""

  def run(error, debug=False, memory='', processes=1):
    def main(args):
      del args
      raise error

    def abort(message, code=1):
      raise Ended(message, code)

    values = flags.FlagValues()
    flags.DEFINE_bool('debug', debug, '', flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(cli.flags, 'FLAGS', values)
    monkeypatch.setattr(cli.multihost, 'abort', abort)
    monkeypatch.setattr(cli.multihost, 'end', lambda code: abort('', code))
    monkeypatch.setattr(cli.jax, 'process_count', lambda: processes)
    monkeypatch.setattr(cli.signal, 'signal', lambda *args: None)
    monkeypatch.setattr(cli.absl_logging, 'set_verbosity', lambda level: None)
    for owner, name in (
      (cli.warnings, 'formatwarning'),
      (sys, 'unraisablehook'),
    ):
      monkeypatch.setattr(owner, name, getattr(owner, name))
    # absl's run, which parses flags and exits, around the inner function.
    monkeypatch.setattr(
      cli.app, 'run', lambda inner, flags_parser: inner(['command'])
    )
    with pytest.raises(Ended) as ended:
      cli.run(main, memory=memory)
    return ended.value.args

  return run


def test_a_fault_of_the_program_is_one_line(end, capsys):
  line, code = end(TypeError('no\nsuch  argument'))
  assert code == 1 and capsys.readouterr().err == ''
  assert line == (
    'error: TypeError: no such argument (this is a fault of the program or of '
    'a library; --debug shows the traceback)'
  )
  assert end(AssertionError())[0].startswith('error: AssertionError (this is')
  assert len(end(KeyError('x' * 9999))[0]) < 700


@pytest.mark.parametrize('error', [TypeError('a'), ValueError('b: pass c')])
def test_debug_shows_tracebacks_of_all_errors(end, capsys, error):
  line, code = end(error, debug=True)
  shown = capsys.readouterr().err
  assert code == 1 and '--debug' not in line and str(error) in line
  assert shown.startswith('Traceback') and 'in main' in shown


@pytest.mark.parametrize('error', [ValueError('a: pass b'), OSError('a: mend')])
def test_errors_of_input_are_their_message(end, error):
  assert end(error) == (f'error: {error}', 1)


def test_lists_of_this_program_stay_lists(end, monkeypatch):
  error = ValueError('fields differ:\n  a: 1\n  b: 2')
  assert end(error)[0] == 'error: fields differ:; a: 1; b: 2'
  monkeypatch.setattr(cli, '__file__', __file__.replace('cli_test', 'cli'))
  assert end(error)[0] == f'error: {error}'


@pytest.mark.parametrize(
  'text',
  [
    'RESOURCE_EXHAUSTED: Out of memory allocating 34359738368 bytes.\nstack',
    'INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory',
  ],
)
def test_devices_without_memory(end, text):
  error = jax.errors.JaxRuntimeError(text)
  line, code = end(error, memory='pass a smaller --batch')
  assert code == 1 and '\n' not in line and 'fault' not in line
  assert 'device is exhausted: pass a smaller --batch. JAX reports: ' in line
  # Another error of JAX is not taken for it.
  line, _ = end(jax.errors.JaxRuntimeError('INTERNAL: x'), memory='pass')
  # JAX 0.7 calls it XlaRuntimeError.
  name = jax.errors.JaxRuntimeError.__name__
  assert f'{name}: INTERNAL: x (this is a fault' in line


def test_a_host_without_memory(end):
  assert "host's memory is exhausted" in end(MemoryError('9 GiB'))[0]


def test_several_processes_report_a_lost_one(end):
  error = jax.errors.JaxRuntimeError('UNAVAILABLE: closed')
  line, code = end(error, processes=2)
  assert 'because another process is gone' in line and code == 134


def test_a_broken_pipe_that_is_not_the_output(end):
  assert end(BrokenPipeError('to a worker')) == ('error: to a worker', 1)


def run_code(body, *args, **settings):
  """Runs a main in another process."""
  code = 'import sys\nfrom sdxl_jax import cli\ndef main(flags):\n  '
  code += f'{body}\ncli.run(main)\n'
  return subprocess.run(
    [sys.executable, '-c', code, *args],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    **settings,
  )


@pytest.mark.parametrize(
  'last, code, words',
  [('pass', 0, ''), ('raise ValueError("b: pass c")', 1, 'b')],
)
def test_a_command_ends_although_its_threads_run(last, code, words):
  """Python's exit would wait for them, or abort where one needs Python then."""
  run = run_code(
    'import atexit, threading, time\n'
    '  threading.Thread(target=time.sleep, args=[60]).start()\n'
    '  atexit.register(print, "the exit of Python")\n'
    f'  print("done")\n  {last}',
    timeout=50,
  )
  assert run.returncode == code and run.stdout == 'done\n'
  assert run.stderr == (f'error: {words}: pass c\n' if words else '')


def test_a_command_has_jax_allocate_more_of_a_gpu(monkeypatch):
  for name in gpu_memory.VARIABLES:
    monkeypatch.delenv(name, raising=False)
  run = run_code('import os; print(os.environ["XLA_CLIENT_MEM_FRACTION"])')
  assert run.stdout == f'{gpu_memory.SHARE}\n', run.stderr


def test_nobody_reads_the_output():
  """As with `| head`: no message, and the code that shells expect."""
  code = 'from sdxl_jax import cli\ncli.run(lambda flags: print("a" * 10**6))'
  with subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  ) as process:
    process.stdout.close()
    errors = process.stderr.read()
  assert process.returncode == 128 + signal.SIGPIPE and errors == b''


def test_debug_is_a_flag_of_every_command():
  plain = run_code('raise RuntimeError("why")')
  shown = run_code('raise RuntimeError("why")', '--debug')
  assert plain.returncode == shown.returncode == 1
  assert plain.stderr.count('\n') == 1 and 'RuntimeError: why' in plain.stderr
  assert 'Traceback' in shown.stderr
  assert '--[no]debug: show the traceback' in run_code('0', '--help').stdout


def test_a_config_that_cannot_be_read(tmp_path, monkeypatch, capsys):
  command = [sys.executable, '-m', 'sdxl_jax.plan', '--topology=here']
  command.append(f'--config={tmp_path / "none.py"}')
  run = subprocess.run(command, capture_output=True, text=True)
  assert run.returncode == 1 and run.stderr.count('\n') == 1
  assert run.stderr.startswith('error: ') and 'none.py' in run.stderr

  # A config file is a program.
  def parse(argv):
    raise ModuleNotFoundError("No module named 'x'\n")

  monkeypatch.setattr(cli.app, 'parse_flags_with_usage', parse)
  for argv, traceback in ((['a'], ''), (['a', '--debug'], 'Traceback')):
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(cli.flags, 'FLAGS', flags.FlagValues())
    with pytest.raises(
      SystemExit, match='ModuleNotFoundError: No module named'
    ):
      cli.parse_flags(argv)
    assert capsys.readouterr().err.startswith(traceback)
