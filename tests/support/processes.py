"""Several training processes on this machine, as hosts of one run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time


class Run:
  """`count` processes of tests/support/recorded_train.py, started together."""

  def __init__(self, count, config, workdir, *flags):
    self.workdir = workdir
    workdir.mkdir(parents=True, exist_ok=True)
    self.logs = [workdir / f'{count}-{i}.log' for i in range(count)]
    command = ['tests.support.recorded_train', '--config', config]
    command += ['--workdir', str(workdir), *flags]
    records = lambda i: {'RECORDS': str(workdir / f'records-{count}-{i}.txt')}
    self.processes = start(command, self.logs, records)

  def wait_for_step(self, step, seconds=900):
    """Until so many steps stand in the metrics."""
    end = time.monotonic() + seconds
    while len(self.metrics()) < step:
      running = all(p.poll() is None for p in self.processes)
      if not running or time.monotonic() > end:
        raise TimeoutError(f'no step {step}; {self.tails()}')
      time.sleep(0.1)

  def signal(self, index, number=signal.SIGTERM):
    self.processes[index].send_signal(number)

  def wait(self, seconds=900):
    """Exit codes."""
    end = time.monotonic() + seconds
    return [p.wait(max(1, end - time.monotonic())) for p in self.processes]

  def metrics(self):
    """[{...}] by step."""
    path = self.workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]

  def records(self):
    """{(part, row): record} of what the processes read."""
    found = {}
    for path in self.workdir.glob(f'records-{len(self.logs)}-*.txt'):
      for line in path.read_text().splitlines():
        part, row, record = map(int, line.split())
        assert found.setdefault((part, row), record) == record
    return found

  def tails(self):
    return [log.read_text()[-2000:] for log in self.logs]


def start(command, logs, environment=lambda i: {}):
  """A process of `python -m *command` for each log, as hosts of one run.

  environment(i) are variables of process i.
  """
  count, port = len(logs), free_port()
  command = [sys.executable, '-m', *command, f'--config.mesh.processes={count}']
  started = []
  for i, log in enumerate(logs):
    variables = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      # Quick to compile; how fast it runs does not matter here.
      'XLA_FLAGS': '--xla_force_host_platform_device_count=1 '
      '--xla_backend_optimization_level=0',
      **environment(i),
    }
    if count > 1:
      variables |= {
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(i),
      }
    with open(log, 'w') as output:
      started.append(
        subprocess.Popen(command, env=variables, stdout=output, stderr=output)
      )
  return started


def free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]
