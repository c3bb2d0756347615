"""Makes results in threads ahead of the loop that takes them in order."""

import collections
import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator

PREFETCH = 32  # results made ahead, such as decoded images


def prefetch(
  pool: concurrent.futures.Executor, make: Callable, ids: Iterable
) -> Iterator:
  """Yields make(i) of each id in order, some of them started ahead."""
  # A full queue at first, then one more for each result.
  ids, pending = iter(ids), collections.deque()
  for i in itertools.islice(ids, PREFETCH):
    pending.append(pool.submit(make, i))
  while pending:
    yield pending.popleft().result()
    pending.extend(pool.submit(make, i) for i in itertools.islice(ids, 1))
