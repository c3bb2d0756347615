"""Tests the commands that the launch scripts run and, dry, print."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ['gpu', 'slurm', 'tpu_vm', 'gke_xpk', 'recipe']
TRAIN = ['train', '--config', 'configs/stage3.py', '--workdir', '/my runs/3']
HARD = ['sample', '--prompt', """a dog's "best" $HOME & `tail`\n*"""]
TPU = ['--name=pod', '--zone=us-east5-a']
GKE = ['--cluster=c', '--name=w', '--type=v5p-64', '--image=gcr.io/p/i']
JOB = {
  'SLURM_JOB_ID': '7',
  'SLURM_JOB_NUM_NODES': '3',
  'SLURM_GPUS_ON_NODE': '4',
}
HOSTS = ['--coordinator=h0:1234', '--processes=2', '--process=1']

# Replaces every program that a script may start: it records its arguments and
# the environment variables of JAX.
FAKE = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"
  printf '%s\\0' "$(env | grep -E '^(JAX|XLA|LIBTPU)_' | sort)" end; } >> "$LOG"
"""
PROGRAMS = 'python gcloud xpk sbatch srun scontrol tar'.split()


class Machine:
  """A PATH on which every program is a fake, and the calls they recorded."""

  def __init__(self, folder):
    self.folder, self.log = folder, folder / 'log'
    for name in PROGRAMS:
      self.install(name, FAKE)

  def install(self, name, text):
    (self.folder / name).write_text(text)
    (self.folder / name).chmod(0o755)

  def run(self, *command, check=True, **env):
    inherited = {
      k: os.environ[k] for k in ('HOME', 'TMPDIR') if k in os.environ
    }
    path = f'{self.folder}:{os.environ["PATH"]}'
    result = subprocess.run(
      list(map(str, command)),
      cwd=ROOT,
      env=inherited | {'PATH': path, 'LOG': str(self.log)} | env,
      capture_output=True,
      text=True,
      timeout=60,
    )
    assert not check or result.returncode == 0, result.stderr
    return result

  def ran(self):
    """Returns [[program, argument, ..., environment], ...] since last time."""
    if not self.log.exists():
      return []
    calls = self.log.read_text().split('\0end\0')[:-1]
    self.log.unlink()
    return [call.split('\0') for call in calls]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


def script(name):
  return f'launch/{name}.sh'


CASES = [
  ('gpu', TRAIN, {}),
  ('gpu', HARD, {'XLA_FLAGS': '--xla_mine=1'}),
  ('gpu', HOSTS + TRAIN, {}),
  ('slurm', ['--nodes=4', '--comment=two words', *TRAIN], {}),
  ('slurm', TRAIN, JOB),
  ('slurm', HARD, JOB | {'SLURM_JOB_NUM_NODES': '1'}),
  ('tpu_vm', [*TPU, 'create', 'v5p-64', '--spot'], {}),
  ('tpu_vm', [*TPU, '--project=mine', 'status'], {}),
  ('tpu_vm', [*TPU, 'copy'], {}),
  ('tpu_vm', [*TPU, 'install'], {}),
  ('tpu_vm', [*TPU, 'run', *TRAIN], {}),
  ('tpu_vm', [*TPU, 'run', *HARD], {'LIBTPU_INIT_ARGS': '--xla_mine=1'}),
  ('tpu_vm', [*TPU, 'logs'], {}),
  ('tpu_vm', [*TPU, 'stop'], {}),
  ('tpu_vm', [*TPU, 'delete'], {}),
  ('gke_xpk', [*GKE, '--slices=2', '--priority=high', *TRAIN], {}),
  ('gke_xpk', [*GKE, *HARD], {}),
  ('recipe', ['/my runs'], {}),
]


@pytest.mark.parametrize('name, arguments, env', CASES)
def test_dry_run_prints_what_runs(machine, name, arguments, env):
  printed = machine.run(script(name), '--dry_run', *arguments, **env).stdout
  assert not machine.ran(), 'a dry run ran something'
  machine.run(script(name), *arguments, **env)
  ran = machine.ran()
  assert ran
  machine.run('bash', '-c', printed, **env)
  assert machine.ran() == ran


def test_gpu_starts_the_verb_with_its_arguments(machine):
  machine.run(script('gpu'), *HARD, XLA_FLAGS='--xla_mine=1')
  ((*command, env),) = machine.ran()
  assert command == ['python', '-m', 'sdxl_jax.sample', *HARD[1:]]
  assert re.search(r'XLA_FLAGS=--xla_gpu.* --xla_mine=1$', env, re.M)
  assert 'JAX_' not in env


def test_gpu_joins_machines_by_hand(machine):
  machine.run(script('gpu'), *HOSTS, *TRAIN)
  ((*command, env),) = machine.ran()
  assert command[-1] == '--config.mesh.processes=2'
  assert {
    'JAX_COORDINATOR_ADDRESS=h0:1234',
    'JAX_NUM_PROCESSES=2',
    'JAX_PROCESS_ID=1',
  } <= set(env.splitlines())


def test_slurm_submits_itself(machine):
  machine.run(script('slurm'), '--nodes=4', *TRAIN)
  ((*command, _),) = machine.ran()
  assert command == ['sbatch', '--nodes=4', 'launch/slurm.sh', *TRAIN]


def test_slurm_job_starts_one_process_per_node(machine):
  machine.run(script('slurm'), *TRAIN, **JOB)
  ((*step, _),) = machine.ran()
  assert '--ntasks-per-node=1' in step
  task = step[step.index('env') :]
  machine.run(*task)
  ((*command, env),) = machine.ran()
  assert command[1:3] == ['-m', 'sdxl_jax.train']
  assert command[-3:] == [
    '--workdir',
    '/my runs/3',
    '--config.mesh.processes=3',
  ]
  assert 'JAX_LOCAL_DEVICE_IDS=0,1,2,3' in env.splitlines()


@pytest.mark.parametrize('code, requeues', [(0, 0), (1, 0), (143, 1)])
def test_slurm_requeues_a_stopped_job(machine, code, requeues):
  machine.install('srun', f'#!/bin/bash\nexit {code}\n')
  result = machine.run(script('slurm'), *TRAIN, **JOB, check=False)
  assert result.returncode == code
  assert machine.ran() == [['scontrol', 'requeue', '7', '']] * requeues


def remote(machine):
  """Returns the shell command that gcloud was to run on the workers."""
  ((*command, _),) = machine.ran()
  assert '--worker=all' in command
  return command[-1].removeprefix('--command=')


@pytest.mark.parametrize(
  'verb, more',
  [
    (TRAIN, ['--config.mesh.processes=4']),
    (HARD, []),
  ],
)
def test_tpu_worker_counts_its_slice(machine, tmp_path, verb, more):
  machine.run(script('tpu_vm'), *TPU, 'run', *verb)
  command = remote(machine)
  venv = tmp_path / 'sdxl_jax/.venv/bin'
  venv.mkdir(parents=True)
  machine.install('curl', '#!/bin/bash\nprintf %s a:0:h0,b:1:h1,c:2:h2,d:3:h3')
  machine.install(venv / 'python', FAKE + 'echo $$; exec sleep 60')
  start = time.monotonic()
  machine.run('bash', '-c', f'cd {tmp_path}; {command}', HOME=str(tmp_path))
  log = tmp_path / 'sdxl_jax.log'
  while not log.exists() or not log.read_text().endswith('\n'):
    assert time.monotonic() < start + 30
    time.sleep(0.05)
  os.kill(int(log.read_text()), signal.SIGTERM)  # it runs in the background
  assert time.monotonic() < start + 30, 'gcloud would wait for its end'
  ((*started, env),) = machine.ran()
  assert started == ['python', '-m', f'sdxl_jax.{verb[0]}', *verb[1:], *more]
  assert 'LIBTPU_INIT_ARGS=--xla_' in env


@pytest.mark.parametrize(
  'verb, slices, more',
  [
    (TRAIN, 1, ['--config.mesh.processes=3']),
    (TRAIN, 2, ['--config.mesh.processes=6']),
    (HARD, 1, []),
  ],
)
def test_gke_host_counts_its_slices(machine, verb, slices, more):
  machine.run(script('gke_xpk'), *GKE, f'--slices={slices}', *verb)
  ((*command, _),) = machine.ran()
  assert f'--num-slices={slices}' in command
  pod = command[-1].removeprefix('--command=')
  machine.run('bash', '-c', f'({pod})', TPU_WORKER_HOSTNAMES='h0,h1,h2')
  ((*started, _),) = machine.ran()
  assert started == ['python', '-m', f'sdxl_jax.{verb[0]}', *verb[1:], *more]


STOPPABLE = """#!/bin/bash
trap 'echo saved; exit 0' TERM
echo ready
for _ in {1..200}; do sleep 0.1; done
"""


def test_a_stopped_command_gets_sigterm_and_counts_as_unfinished(machine):
  machine.install('python', STOPPABLE)
  source = 'source launch/environment.sh; exec bash -c "$RESTARTABLE" bash "$@"'
  started = subprocess.Popen(
    ['bash', '-c', source, 'bash', machine.folder / 'python'],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert started.stdout.readline() == 'ready\n'
  started.send_signal(signal.SIGTERM)
  assert started.communicate(timeout=20)[0] == 'saved\n'
  assert started.returncode == 143
  for code in (0, 3):
    command = ['bash', '-c', f'exit {code}']
    result = machine.run('bash', '-c', source, 'bash', *command, check=False)
    assert result.returncode == code


@pytest.mark.parametrize('name', SCRIPTS)
def test_help_is_the_comment_at_the_top(machine, name):
  text = machine.run(script(name), '--help').stdout
  assert f'launch/{name}.sh' in text and '--dry_run' in text
  assert not text.startswith('#') and 'set -euo' not in text


@pytest.mark.parametrize(
  'name, arguments, env, message',
  [
    ('gpu', [], {}, 'pass a verb'),
    ('gpu', ['--hosts=3', *TRAIN], {}, 'unknown option --hosts=3'),
    ('gpu', [*HOSTS[:2], *TRAIN], {}, '--process'),
    ('gpu', HOSTS + HARD, {}, 'only train and'),
    ('slurm', ['--nodes=2'], {}, 'pass a verb'),
    ('slurm', HARD, JOB, 'only train and'),
    ('slurm', TRAIN, JOB | {'SLURM_GPUS_ON_NODE': ''}, '--gpus-per-node'),
    ('tpu_vm', ['create'], {}, '--name=NAME'),
    ('tpu_vm', TPU[:1] + ['create'], {}, '--zone=ZONE'),
    ('tpu_vm', TPU, {}, 'pass an action'),
    ('tpu_vm', [*TPU, 'fly'], {}, 'unknown action fly'),
    ('tpu_vm', [*TPU, 'create'], {}, 'create needs a type'),
    ('tpu_vm', [*TPU, 'run'], {}, 'run needs a verb'),
    *[
      (
        'gke_xpk',
        [a for a in GKE + TRAIN if a != omitted],
        {},
        omitted.split('=')[0],
      )
      for omitted in GKE
    ],
    ('gke_xpk', GKE, {}, 'pass a verb'),
    ('recipe', [], {}, 'pass one folder'),
    ('recipe', ['--fast', 'DIR'], {}, 'unknown option --fast'),
    ('gke_xpk', [*GKE, '--slices=2', *HARD], {}, 'only train and'),
  ],
)
def test_errors_are_one_line(machine, name, arguments, env, message):
  result = machine.run(script(name), *arguments, check=False, **env)
  assert result.returncode == 2 and not machine.ran()
  assert message in result.stderr and result.stderr.count('\n') == 1


@pytest.mark.parametrize('path', sorted((ROOT / 'launch').glob('*.sh')))
def test_scripts_are_sound(path):
  assert path.name == 'environment.sh' or os.access(path, os.X_OK)
  subprocess.run(['bash', '-n', path], check=True)
  if shutil.which('shellcheck'):
    subprocess.run(['shellcheck', '-x', path], cwd=ROOT, check=True)


def flags(name):
  """Returns the flags in a variable of environment.sh."""
  source = f'source launch/environment.sh; echo "${name}"'
  env = {k: os.environ[k] for k in ('PATH',)}
  command = ['bash', '-c', source]
  return subprocess.check_output(command, cwd=ROOT, env=env, text=True).split()


def devices(xla_flags):
  """Runs jax.devices() in a process with the given flags."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla_flags}
  command = [sys.executable, '-c', 'import jax; jax.devices()']
  return subprocess.run(command, env=env, capture_output=True, text=True)


def test_xla_accepts_the_gpu_flags():
  gpu_flags = flags('GPU_FLAGS')
  assert gpu_flags
  result = devices(' '.join(gpu_flags))
  assert result.returncode == 0, result.stderr[-500:]
  # XLA ends the process on an unknown flag.
  assert devices('--xla_gpu_no_such_flag=1').returncode != 0


COMPILE_FOR_TPU = """
import jax
from jax.experimental import topologies
devices = topologies.get_topology_desc('v5e:2x2', platform='tpu').devices
sharding = jax.sharding.SingleDeviceSharding(devices[0])
x = jax.ShapeDtypeStruct((128, 128), 'float32', sharding=sharding)
jax.jit(lambda x: x @ x).lower(x).compile()
"""


def compile_for_tpu(libtpu_flags):
  """Compiles a matmul for a TPU in a process with the given flags."""
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'LIBTPU_INIT_ARGS': libtpu_flags,
  }
  command = [sys.executable, '-c', COMPILE_FOR_TPU]
  return subprocess.run(command, env=env, capture_output=True, text=True)


def test_libtpu_accepts_the_tpu_flags():
  pytest.importorskip('libtpu', reason='needs jax[tpu], but no TPU')
  result = compile_for_tpu(' '.join(flags('TPU_FLAGS')))
  assert result.returncode == 0, result.stderr[-500:]
  assert compile_for_tpu('--xla_tpu_no_such_flag=1').returncode != 0
