"""Coordinates the processes of a run: start and agreement."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from sdxl_jax.distributed import stop_notice

# A process without a heartbeat for so long is considered lost, and all others
# end. Pauses for garbage collection and slow disks are shorter.
HEARTBEAT_SECONDS = 60
# Exit code of a process that has lost another, the same as of JAX's own abort.
# Schedulers may restart such a run, but not one whose config is wrong.
EXIT_PEER_LOST = 134
TEXT_BYTES = 4096  # of a text that the primary process sends to all
# Variables in which launchers give the number of processes that they started.
LAUNCHERS = (
  'JAX_NUM_PROCESSES',
  'SLURM_STEP_NUM_TASKS',
  'OMPI_COMM_WORLD_SIZE',
)


def start(processes: int, setting: str = 'config.mesh.processes') -> None:
  """Joins the other processes; call it before any other function of JAX.

  On TPU VMs, GKE, SLURM and Open MPI JAX detects the processes. Elsewhere the
  environment must have JAX_COORDINATOR_ADDRESS (host:port of process 0),
  JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Args:
    processes: the expected number.
    setting: that gives it, which errors name.

  Raises:
    ValueError: if another number was started, or if this process cannot join.
  """
  if processes > 1 and not jax.distributed.is_initialized():
    join(processes, setting)
  started = jax.process_count()
  # If a launcher started several but this one is alone, each would train by
  # itself.
  if started == 1:
    started = max(int(os.environ.get(name, 1)) for name in LAUNCHERS)
  if started != processes:
    raise ValueError(
      f'{setting} is {processes}, but {started} were started: set '
      f'--{setting}={started}, or start {processes}'
    )


def join(processes: int, setting: str) -> None:
  """Initializes jax.distributed; see start."""
  count = os.environ.get('JAX_NUM_PROCESSES')
  index = os.environ.get('JAX_PROCESS_ID')
  if count and int(count) != processes:
    raise ValueError(
      f'{setting} is {processes}, but JAX_NUM_PROCESSES is '
      f'{count}; they must be equal'
    )
  try:
    jax.distributed.initialize(
      num_processes=int(count) if count else None,
      process_id=int(index) if index else None,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (RuntimeError, ValueError) as error:
    raise ValueError(
      f'{processes} processes are expected ({setting}), but this one cannot '
      f'join them: {error}'
    ) from error


def is_primary() -> bool:
  """Returns whether this is the process that writes logs, images, config."""
  return jax.process_index() == 0


def describe() -> str:
  """Returns one line: the numbers of processes and devices."""
  kinds = sorted({device.device_kind for device in jax.devices()})
  return (
    f'{jax.process_count()} processes, {jax.device_count()} devices '
    f'({", ".join(kinds)}), {jax.local_device_count()} of them in each'
  )


def check_equal_across_hosts(texts: Mapping[str, str]) -> None:
  """Checks that all processes have the same {name: text}, by their digests.

  Processes with different code, config or data would hang or, worse, train.

  Raises:
    ValueError: if a process has another text than process 0.
  """
  digests = [hashlib.sha256(text.encode()).digest() for text in texts.values()]
  # Compare the digests of all processes with those of process 0.
  local = np.stack([np.frombuffer(digest, np.uint8) for digest in digests])
  # [process, name, byte]
  gathered = multihost_utils.process_allgather(local).reshape(-1, *local.shape)
  differs = (gathered != gathered[0]).any(axis=-1)
  for name, is_different in zip(texts, differs.T):
    if is_different.any():
      others = np.flatnonzero(is_different).tolist()
      raise ValueError(
        f'processes {others} have another {name} than process 0; this one, '
        f'{jax.process_index()}, has: {texts[name]}'
      )


def from_primary(text: str) -> str:
  """Returns the text that the primary process passed, in all processes."""
  if jax.process_count() == 1:
    return text
  buffer = np.zeros(TEXT_BYTES, np.uint8)
  data = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
  buffer[: len(data)] = data
  buffer = multihost_utils.broadcast_one_to_all(buffer, is_primary())
  return bytes(buffer).rstrip(b'\0').decode(errors='ignore')


def on_primary(action: Callable[[], None]) -> None:
  """Runs an action in the primary process.

  Raises:
    ValueError: in all processes, if it fails there.
  """
  problem, cause = '', None
  if is_primary():
    try:
      action()
    except (ValueError, OSError) as error:
      problem, cause = str(error), error
  problem = from_primary(problem)
  if problem:
    raise ValueError(problem) from cause


def end(code: int) -> NoReturn:
  """Ends this process in order, with the others, with an exit code.

  It does not wait for its threads, see stop_notice.end_process.
  """
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()
  stop_notice.end_process(code)


def interrupt(error: KeyboardInterrupt) -> NoReturn:
  """Ends this process after Ctrl-C, with the exit code that shells expect."""
  code = 128 + signal.SIGINT
  if isinstance(error, stop_notice.Interrupted):
    end(code)
  stop_notice.end_process(code, f'\nstopped by {stop_notice.INTERRUPT}')


def abort(message: str, code: int = 1) -> NoReturn:
  """Ends this process with an error, at once and without the others.

  To end in order would be to wait for the others, which may wait for this one.
  """
  if jax.distributed.is_initialized():
    message = f'process {jax.process_index()}: {message}'
  stop_notice.end_process(code, message)


def share(count: int) -> range:
  """Returns this process's share of so many items, one block of them."""
  size = -(-count // jax.process_count())
  begin = min(count, size * jax.process_index())
  return range(begin, min(count, begin + size))


def gather(rows: np.ndarray, count: int) -> np.ndarray:
  """Returns the rows of all processes, [count, ...], in every process.

  Args:
    rows: of this process's `share` of the count.
    count: rows of all.
  """
  if jax.process_count() == 1:
    return rows
  # All processes pass as many.
  size = -(-count // jax.process_count())
  padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
  padded[: len(rows)] = rows
  return multihost_utils.process_allgather(padded, tiled=True)[:count]


def array_from_primary(array: np.ndarray | None) -> np.ndarray | None:
  """Returns the float32 array, or None, that the primary process passed."""
  if jax.process_count() == 1:
    return array
  shape = from_primary(json.dumps(None if array is None else array.shape))
  if (shape := json.loads(shape)) is None:
    return None
  own = array if is_primary() else np.zeros(shape, np.float32)
  return multihost_utils.broadcast_one_to_all(own, is_primary())


def fetch(array: jax.Array) -> np.ndarray:
  """Returns the whole array in every process, wherever its shards are."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def barrier(name: str) -> None:
  """Waits until all processes have reached the barrier of this name."""
  multihost_utils.sync_global_devices(name)
