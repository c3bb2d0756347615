"""Tests what signals do before and during training, in other processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

START = """
import hashlib, signal, sys, threading, time
import jax
from sdxl_jax import cli
from sdxl_jax.distributed import multihost, stop_notice
stop_notice.GRACE_S = 1


def main(flags):
  notice = multihost.PreemptionNotice()
  notice.end_at_once('before step 1', lambda: print('released'))
"""


def run(body, *numbers, wait=0.3):
  """Runs the body of a main, and sends signals; returns (code, output, s)."""
  code = START + textwrap.indent(textwrap.dedent(body), '  ')
  code += '\n\nsys.argv = ["test"]\ncli.run(main)\n'
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1'},
  )
  output = process.stdout.readline()  # 'ready'
  started = time.monotonic()
  for number in numbers:
    process.send_signal(number)
    time.sleep(wait)
  output += process.communicate(timeout=60)[0]
  return process.returncode, output, time.monotonic() - started


# A call that Python cannot interrupt, as a compilation is, and a thread that
# the interpreter would wait for at its end.
BUSY = """
threading.Thread(target=time.sleep, args=(20,)).start()
print('ready')
hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)
"""
WAITING = """
threading.Thread(target=time.sleep, args=(20,)).start()
print('ready')
time.sleep(20)
"""


@pytest.mark.parametrize('body', [BUSY, WAITING], ids=['busy', 'waiting'])
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_within_seconds(body, number):
  code, output, seconds = run(body, number)
  assert code == 128 + number and seconds < 10
  assert 'Traceback' not in output
  if number == signal.SIGTERM:
    assert 'stopped by SIGTERM before step 1' in output
    assert 'released' in output


TRAINING = """
notice.save_first()
print('ready')
end = time.monotonic() + 20
while not notice.requested(1) and time.monotonic() < end:
  jax.pure_callback(lambda: time.sleep(0.01), None)
print('saving', notice.reason)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_training_is_reported(number):
  """Also when it arrives within a callback of JAX."""
  code, output, seconds = run(
    TRAINING + 'time.sleep(0.5)\nnotice.close()\nprint("closed")', number
  )
  name = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}[number]
  assert (code, seconds < 10) == (0, True)
  assert f'saving {name}' in output and 'closed' in output


def test_a_second_interrupt_ends_at_once():
  code, output, seconds = run(
    TRAINING + 'time.sleep(20)', signal.SIGINT, signal.SIGINT
  )
  assert code == 130 and seconds < 5 and 'second Ctrl-C' in output


def test_the_exit_code_after_an_interrupt():
  body = TRAINING + 'raise stop_notice.Interrupted'
  code, output, _ = run(body, signal.SIGINT)
  assert code == 130 and 'Traceback' not in output
