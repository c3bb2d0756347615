"""Starts training processes on this machine that act as hosts of one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

from tests.support import xla_flags


class Run:
  """`count` processes of tests/support/recorded_train.py, started together."""

  def __init__(self, count, config, workdir, *flags):
    self.workdir = workdir
    workdir.mkdir(parents=True, exist_ok=True)
    self.logs = [workdir / f'{count}-{i}.log' for i in range(count)]
    command = ['tests.support.recorded_train', '--config', config]
    command += ['--workdir', str(workdir), *flags]

    def environment(i):
      return {'RECORDS': str(workdir / f'records-{count}-{i}.txt')}

    self.processes = start(command, self.logs, environment)

  def wait_for_step(self, step, seconds=900):
    """Waits until this number of steps is in the metrics."""
    end = time.monotonic() + seconds
    while len(self.metrics()) < step:
      running = all(p.poll() is None for p in self.processes)
      if not running or time.monotonic() > end:
        raise TimeoutError(f'no step {step}; {self.tails()}')
      time.sleep(0.1)

  def signal(self, index, number=signal.SIGTERM):
    """Sends a signal to one process."""
    self.processes[index].send_signal(number)

  def wait(self, seconds=900):
    """Waits for all processes; returns their exit codes."""
    end = time.monotonic() + seconds
    return [p.wait(max(1, end - time.monotonic())) for p in self.processes]

  def metrics(self):
    """Returns the metrics of each step."""
    path = self.workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]

  def records(self):
    """Returns {(part, row): record} of what the processes read."""
    records = {}
    for path in self.workdir.glob(f'records-{len(self.logs)}-*.txt'):
      for line in path.read_text().splitlines():
        part, row, record = map(int, line.split())
        assert records.setdefault((part, row), record) == record
    return records

  def tails(self):
    """Returns the end of each log."""
    return [log.read_text()[-2000:] for log in self.logs]


def start(
  command, logs, environment=lambda i: {}, setting='config.mesh.processes'
):
  """Starts one process of `python -m *command` per log, as hosts of one run.

  Args:
    command: module and arguments.
    logs: files for the output of each process.
    environment: function of the index i; returns more variables of process i.
    setting: flag of the number of processes.
  """
  count, port = len(logs), free_port()
  command = [sys.executable, '-m', *command, f'--{setting}={count}']
  running = []
  for i, log in enumerate(logs):
    variables = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': xla_flags.flags(devices=1),
      **environment(i),
    }
    if count > 1:
      variables |= {
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(i),
      }
    with open(log, 'w') as output:
      running.append(
        subprocess.Popen(command, env=variables, stdout=output, stderr=output)
      )
  return running


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]
