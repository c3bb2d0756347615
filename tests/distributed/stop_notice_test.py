"""Tests what signals do before and during training, in other processes."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.support import processes

START = """
import hashlib, signal, sys, threading, time
import jax
from sdxl_jax import cli
from sdxl_jax.distributed import stop_notice
stop_notice.GRACE_S = 1


def main(flags):
  notice = stop_notice.PreemptionNotice()
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


def test_a_signal_when_nobody_reads_the_output():
  """As after Ctrl-C in `train | tee`, or in a closed terminal."""
  code = START + textwrap.indent(BUSY, '  ').replace('ready', 'READY')
  code = code.replace("print('READY')", "print('READY', flush=True)")
  code += '\n\nsys.argv = ["test"]\ncli.run(main)\n'
  with subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  ) as process:
    process.stdout.readline()
    process.stdout.close()
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM


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


SEVERAL = """
import sys, time
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from sdxl_jax.distributed import multihost, stop_notice
notice = stop_notice.PreemptionNotice()
notice.end_at_once('before step 1', lambda: None)
multihost.barrier('both are ready')
notice.save_first()
step = 0
print('ready', flush=True)
while not notice.requested(step) and step < 2000:
  time.sleep(0.01)
  step += 1
print('saving', step, notice.reason, flush=True)
notice.close()
multihost.barrier('both have saved')
print('closed', flush=True)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_of_two_processes_stops_both(number):
  """At the same step, which neither has passed."""
  address = f'localhost:{processes.free_port()}'
  running = [
    subprocess.Popen(
      [sys.executable, '-c', SEVERAL, address, str(i)],
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )
    for i in range(2)
  ]
  for process in running:
    # After Gloo's lines, or at the end of one that it writes in parts.
    lines = iter(process.stdout.readline, '')
    assert any(line.endswith('ready\n') for line in lines)
  running[1].send_signal(number)
  outputs = [process.communicate(timeout=120)[0] for process in running]
  assert [process.returncode for process in running] == [0, 0]
  name = {signal.SIGTERM: 'SIGTERM', signal.SIGINT: 'Ctrl-C'}[number]
  reasons = ('a signal to another process', name)
  steps = [
    re.search(rf'saving (\d+) {reason}\nclosed', output)[1]
    for reason, output in zip(reasons, outputs)
  ]
  assert steps[0] == steps[1] and int(steps[0]) < 2000


def test_a_second_interrupt_while_the_first_ends_the_process():
  code, output, _ = run(
    'stop_notice.multiprocessing.active_children = '
    'lambda: time.sleep(1) or []' + WAITING,
    signal.SIGINT,
    signal.SIGINT,
  )
  assert code == 130 and 'Traceback' not in output
