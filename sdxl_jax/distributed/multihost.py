"""Many processes, one run: a loud start, agreement, and a common stop."""

import hashlib
import os
import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

# A process that is silent for so long is taken for dead, and the run ends on
# all the others. Garbage collection and slow disks take less.
HEARTBEAT_SECONDS = 60
# How a process ends that has lost another, as JAX's own abort: schedulers may
# start it again, which they should not after an error of the config.
EXIT_PEER_LOST = 134
# What launchers say of how many processes they started.
LAUNCHERS = (
  'JAX_NUM_PROCESSES',
  'SLURM_STEP_NUM_TASKS',
  'OMPI_COMM_WORLD_SIZE',
)


def start(processes):
  """Joins the other processes; to be called before anything else of JAX.

  TPU VMs, GKE, SLURM and Open MPI tell by themselves who takes part. Elsewhere
  the environment does: JAX_COORDINATOR_ADDRESS (host:port of process 0),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Args:
    processes: how many are expected.

  Raises:
    ValueError: where another number is there, or cannot be reached.
  """
  if processes > 1 and not jax.distributed.is_initialized():
    join(processes)
  found = jax.process_count()
  if found == 1:
    # Alone, although somebody started several: each would train for itself.
    launched = [int(os.environ.get(name, 1)) for name in LAUNCHERS]
    found = max(launched)
  if found != processes:
    raise ValueError(
      f'config.mesh.processes is {processes}, but {found} were started: set '
      f'--config.mesh.processes={found}, or start {processes}'
    )


def join(processes):
  number = os.environ.get('JAX_NUM_PROCESSES')
  index = os.environ.get('JAX_PROCESS_ID')
  if number and int(number) != processes:
    raise ValueError(
      f'config.mesh.processes is {processes}, but JAX_NUM_PROCESSES is '
      f'{number}; they must be the same'
    )
  try:
    jax.distributed.initialize(
      num_processes=int(number) if number else None,
      process_id=int(index) if index else None,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f'{processes} processes are expected (config.mesh.processes), but this '
      f'one cannot join them: {error}'
    ) from error


def is_primary():
  """Whether this process speaks for all: logs, pictures, config."""
  return jax.process_index() == 0


def describe():
  """One line: processes and devices found."""
  kinds = sorted({device.device_kind for device in jax.devices()})
  return (
    f'{jax.process_count()} processes, {jax.device_count()} devices '
    f'({", ".join(kinds)}), {jax.local_device_count()} of them in each'
  )


def check_equal_across_hosts(facts):
  """Raises ValueError if the processes differ in one of the facts {name: text}.

  Hosts that train on other code, config or data would hang or, worse, not.
  """
  digest = lambda text: np.frombuffer(
    hashlib.sha256(text.encode()).digest(), np.uint8
  )
  ours = np.stack([digest(text) for text in facts.values()])
  everyones = multihost_utils.process_allgather(ours).reshape(-1, *ours.shape)
  for name, digests in zip(facts, everyones.swapaxes(0, 1)):
    others = [i for i, d in enumerate(digests) if (d != digests[0]).any()]
    if others:
      raise ValueError(
        f'processes {others} have another {name} than process 0; this one, '
        f'{jax.process_index()}, has: {facts[name]}'
      )


def abort(message, code=1):
  """Ends this process with an error, at once and without the others.

  The usual way out would wait for them, and they may wait for this one.
  """
  if not jax.distributed.is_initialized():
    sys.exit(message)
  print(f'process {jax.process_index()}: {message}', file=sys.stderr)
  sys.stderr.flush()
  os._exit(code)


def fetch(array):
  """An array as numpy, whole in every process, wherever its parts are."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def barrier(name):
  """Waits for all processes."""
  multihost_utils.sync_global_devices(name)


class PreemptionNotice:
  """Tells, at the same step everywhere, that somebody asked the run to end.

  SIGTERM is what clusters send before they take a machine away. If one process
  gets it, all learn of it, and agree on a step that none has passed.
  """

  def __init__(self):
    self.alone = jax.process_count() == 1
    self.signalled = False
    if self.alone:
      self._before = signal.signal(signal.SIGTERM, self._on_signal)

  def _on_signal(self, number, frame):
    del number, frame
    self.signalled = True

  def requested(self, step):
    """Whether to save and end after so many steps."""
    if self.alone:
      return self.signalled
    return multihost_utils.reached_preemption_sync_point(step)

  def close(self):
    if self.alone:
      signal.signal(signal.SIGTERM, self._before)
