"""Runs the cases of gpu_speed, each as a process with a limit of time."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from tests.benchmarks.gpu import cases
from tests.support import xla_flags

ROOT = pathlib.Path(__file__).parents[3]
LEAST = 20  # seconds, below which no case is started
DEVICES_LIMIT = 120  # seconds in which the devices must answer
# Of the GPU's memory. The rest is for what allocates by itself: the context,
# cuBLAS, cuDNN.
MEMORY_FRACTION = '0.92'


class Limits(NamedTuple):
  """Seconds of all cases together, and of one."""

  total: float
  case: float


def run_all(setting, names, arguments, programs, limits):
  """Runs cases; returns how many lines were measured.

  Args:
    setting: what they have in common.
    names: PART/CHOICE of each.
    arguments: of this command, for each process.
    programs: folder of compiled programs.
    limits: see Limits.
  """
  setting.out.mkdir(parents=True, exist_ok=True)
  # As Ctrl-C does, so that no process is left behind on the GPU.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  end = time.monotonic() + limits.total
  command = [sys.executable, '-m', 'tests.benchmarks.gpu_speed', *arguments]
  variables = environment(setting.tiny, programs.absolute())
  found, count = {}, 0
  for name in (f'{cases.DEVICES}/', *names):
    now = dataclasses.replace(setting, case=name, card=found.get('card', ''))
    part, left = name.partition('/')[0], end - time.monotonic()
    if reason := why_not(part, found, setting.tiny):
      now.report(skipped=reason)
      continue
    if left < LEAST:
      now.report(skipped=f'{left:.0f} of {limits.total:.0f} s were left')
      continue
    limit = DEVICES_LIMIT if part == cases.DEVICES else limits.case
    process = [*command, f'--case={name}', f'--card={now.card}']
    process.append(f'--out={setting.out}')  # not relative to another folder
    lines = run(now, process, variables, min(limit, left))
    if part == cases.DEVICES:
      found = next((line for line in lines if 'card' in line), {})
    else:
      count += sum('s' in line for line in lines)
  return count


def why_not(part, found, tiny):
  """Returns why a part cannot be measured with the devices found, or ''.

  Args:
    part: name.
    found: the line of devices.py; {}: not looked for yet, or no answer.
    tiny: whether a CPU will do.
  """
  if part == cases.DEVICES:
    return ''
  if not part.startswith('torch'):
    if not found.get('jax'):
      return found.get('jax_missing', 'no answer about the devices of JAX')
    if found['jax_platform'] == 'cpu' and not tiny:
      return (
        f'JAX found {found["jax_devices"]} and no GPU: install its plug-in, '
        "pip install 'jax[cuda12]' or 'jax[cuda13]'"
      )
    return ''
  if not found.get('torch'):
    return found.get('torch_missing', 'no answer about the devices of PyTorch')
  if not found['torch_cuda'] and not tiny:
    return f'PyTorch {found["torch"]} finds no GPU'
  return ''


def environment(tiny, programs):
  """Returns the environment of the processes, this one's for what is set.

  Args:
    tiny: whether the GPU is left alone.
    programs: folder of compiled programs.
  """
  variables = {
    'JAX_COMPILATION_CACHE_DIR': str(programs / 'jax'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
    'TORCHINDUCTOR_CACHE_DIR': str(programs / 'torch'),
    'PYTORCH_CUDA_ALLOC_CONF': 'expandable_segments:True',
    'PYTHONUNBUFFERED': '1',
  }
  fractions = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  if not any(name in os.environ for name in fractions):
    variables[fractions[0]] = MEMORY_FRACTION
  if tiny:
    # Threads would wait for each other on a busy machine.
    variables |= {'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1'}
    variables['XLA_FLAGS'] = xla_flags.flags(devices=1)
  return variables | os.environ


def run(setting, command, variables, limit):
  """Runs one case; returns its lines.

  Args:
    setting: of the case.
    command: that measures it.
    variables: its environment.
    limit: seconds until it is killed, with its children.
  """
  results, log = setting.out / 'results.jsonl', setting.out / 'log.txt'
  before = len(read_lines(results))
  started = time.monotonic()
  with open(log, 'ab') as file:
    file.write(f'==== {setting.case}\n'.encode())
    file.flush()
    begin = file.tell()
    process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=variables,
      stderr=file,
      process_group=0,  # so that its children can be killed too
    )
    ending = wait(process, limit)
  seconds = time.monotonic() - started
  if ending:
    last = log.read_bytes()[begin:].decode(errors='replace').split('\n')
    last = [line.strip() for line in last if line.strip()][-3:]
    setting.report(failed=ending, seconds=round(seconds, 1), log=last)
  print(f'{setting.case}: {seconds:.0f} s', flush=True)
  return read_lines(results)[before:]


def wait(process, limit):
  """Waits for a process; returns how it ended, or '' if it ended well."""
  try:
    code = process.wait(limit)
  except BaseException as error:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if not isinstance(error, subprocess.TimeoutExpired):
      raise  # the user stopped all
    return f'cut off after {limit:.0f} s'
  return f'ended with {code}' if code else ''


def read_lines(path):
  """Returns the lines of a results.jsonl; [] where there is none."""
  if not path.exists():
    return []
  return [json.loads(x) for x in path.read_text(encoding='utf-8').splitlines()]
