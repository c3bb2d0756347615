"""Processes that index a dataset, and end with the one that starts them."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def start(workers: int) -> Iterator[Callable[..., Iterator]]:
  """Yields a map() that runs in so many processes, or in this one."""
  if not workers:
    yield map
    return
  # Not forked: JAX may have started threads, which a fork would freeze.
  spawn = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(
    workers, spawn, initializer=follow_parent
  ) as executor:
    yield executor.map


def follow_parent() -> None:
  """Leaves Ctrl-C to the parent, and ends this process when that is gone."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
