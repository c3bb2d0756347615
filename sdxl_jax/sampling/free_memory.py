"""Measures the memory that is free on devices and on this host."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

# Limits of cgroup v1 beyond this stand for none.
NO_LIMIT = 2**60
# (folder of the controller, limit, usage, pages of files that can be dropped)
CGROUP_2 = '', 'memory.max', 'memory.current', 'inactive_file'
CGROUP_1 = (
  'memory',
  'memory.limit_in_bytes',
  'memory.usage_in_bytes',
  'total_inactive_file',
)


def on_devices(devices: Sequence[Any]) -> int | None:
  """Returns the bytes that are free on the fullest of some devices.

  Args:
    devices: jax.Device.

  Returns:
    None where the backend does not count its memory, as the CPU's does not.
  """
  free = []
  for device in devices:
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
      return None
    free.append(stats['bytes_limit'] - stats.get('bytes_in_use', 0))
  return min(free)


def on_host(root: str | pathlib.Path = '/') -> int | None:
  """Returns the bytes that this process may still take of host memory.

  They are what Linux calls available, or less in a container with a limit.

  Args:
    root: of the file system.

  Returns:
    None where the system does not tell.
  """
  root = pathlib.Path(root)
  limits = list(cgroup_limits(root))
  meminfo = read_table(root / 'proc/meminfo')
  if 'MemAvailable:' in meminfo:
    limits.append(1024 * meminfo['MemAvailable:'])
  return min(limits, default=None)


def cgroup_limits(root: pathlib.Path) -> Iterator[int]:
  """Yields the bytes that each limited cgroup of this process has left."""
  try:
    lines = (root / 'proc/self/cgroup').read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if controllers and 'memory' not in controllers.split(','):
      continue
    folder, limit, usage, droppable = CGROUP_1 if controllers else CGROUP_2
    # A container may have its own group mounted as the top one.
    base = root / 'sys/fs/cgroup' / folder
    group = base / path.lstrip('/')
    for parent in (group, *group.parents):
      left = bytes_left(parent, limit, usage, droppable)
      if left is not None:
        yield left
      if parent == base:
        break


def bytes_left(
  group: pathlib.Path, limit: str, usage: str, droppable: str
) -> int | None:
  """Returns the bytes left in a cgroup, or None for one without a limit.

  Args:
    group: its folder.
    limit: name of the file of its limit.
    usage: name of the file of its usage.
    droppable: key in memory.stat of cached pages of files.
  """
  try:
    most = (group / limit).read_text().strip()
    used = int((group / usage).read_text())
  except (OSError, ValueError):
    return None
  if not most.isdecimal() or int(most) >= NO_LIMIT:
    return None
  cached = read_table(group / 'memory.stat').get(droppable, 0)
  return max(0, int(most) - used + cached)


def read_table(path: pathlib.Path) -> dict[str, int]:
  """Reads {first word: second word} of each line of a file of the kernel."""
  try:
    lines = path.read_text().splitlines()
  except OSError:
    return {}
  words = (line.split() for line in lines)
  return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}
