"""The memory that is free, by files as Linux has them."""

import types

import jax
import pytest

from sdxl_jax.sampling import free_memory

MIB = 2**20
MEMINFO = 'MemTotal: 13000000 kB\nMemFree: 700 kB\nMemAvailable: 2048 kB\n'


def device(stats):
  return types.SimpleNamespace(memory_stats=lambda: stats)


def test_the_fullest_device_counts():
  stats = [
    {'bytes_limit': 10, 'bytes_in_use': n, 'other': 1} for n in (3, 7, 5)
  ]
  assert free_memory.on_devices(list(map(device, stats))) == 3
  assert free_memory.on_devices([device({'bytes_limit': 9})]) == 9


def test_devices_that_do_not_count():
  assert (
    free_memory.on_devices([device({'bytes_limit': 9}), device(None)]) is None
  )
  assert free_memory.on_devices([device({})]) is None
  assert free_memory.on_devices(jax.devices()) is None  # CPUs


def write(root, files):
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


V2 = {'proc/self/cgroup': '0::/a/b\n'}
V1 = {'proc/self/cgroup': '5:cpu,memory:/job\n4:cpuset:/x\n'}


def group(folder, limit, used, cached):
  """The files of a cgroup of version 2."""
  return {
    f'sys/fs/cgroup/{folder}memory.max': limit,
    f'sys/fs/cgroup/{folder}memory.current': used,
    f'sys/fs/cgroup/{folder}memory.stat': f'anon 5\ninactive_file {cached}\n',
  }


@pytest.mark.parametrize(
  'files, free',
  [
    ({}, None),
    ({'proc/meminfo': MEMINFO}, 2 * MIB),
    # A limit of version 2, of the group itself or of one above it; pages of
    # files that can be dropped do not count.
    (V2 | group('a/b/', '1000\n', '900\n', 50), 150),
    (
      V2 | group('a/', '1000\n', '900\n', 50) | group('a/b/', 'max', '9', 0),
      150,
    ),
    (V2 | group('', '1000\n', '1200\n', 50), 0),
    # In a container the path of the group is often not there.
    ({'proc/self/cgroup': '0::/of/the/host\n'} | group('', '70', '30', 0), 40),
    (V2 | group('a/b/', '1000', '1', 0) | {'proc/meminfo': MEMINFO}, 999),
    (
      V2 | group('a/b/', f'{9 * MIB}', '1', 0) | {'proc/meminfo': MEMINFO},
      2 * MIB,
    ),
    (
      V1
      | {
        'sys/fs/cgroup/memory/job/memory.limit_in_bytes': '500\n',
        'sys/fs/cgroup/memory/job/memory.usage_in_bytes': '200\n',
        'sys/fs/cgroup/memory/job/memory.stat': 'total_inactive_file 25\n',
        'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n',
        'sys/fs/cgroup/memory/memory.usage_in_bytes': '200\n',
      },
      325,
    ),
    (V2 | group('a/b/', 'nonsense', '200', 0), None),
  ],
)
def test_the_host(tmp_path, files, free):
  write(tmp_path, files)
  assert free_memory.on_host(tmp_path) == free


def test_this_host():
  free = free_memory.on_host()
  assert free is None or 2**25 < free < 2**45
