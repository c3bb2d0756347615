"""Tests start, agreement and stop, of one process and of several."""

import os
import signal

import jax
import numpy as np
import pytest

from sdxl_jax.distributed import multihost, stop_notice
from tests.support import processes


def test_one_process():
  multihost.start(1)
  assert multihost.is_primary()
  assert multihost.describe().startswith('1 processes, ')
  multihost.check_equal_across_hosts({'config': 'a', 'set of versions': 'b'})


def test_processes_that_differ_are_named(monkeypatch):
  def allgather(local):
    other = local.copy()
    other[1] += 1
    return np.stack([local, local, other])

  monkeypatch.setattr(multihost.multihost_utils, 'process_allgather', allgather)
  message = r'processes \[2\] have another versions than .* 0, has: jax 1'
  with pytest.raises(ValueError, match=message):
    multihost.check_equal_across_hosts({'config': '{}', 'versions': 'jax 1'})


@pytest.mark.parametrize('name', multihost.LAUNCHERS)
def test_several_were_started_but_one_is_expected(monkeypatch, name):
  monkeypatch.setenv(name, '4')
  with pytest.raises(ValueError, match='processes is 1, but 4 were started'):
    multihost.start(1)


def test_another_number_in_the_environment(monkeypatch):
  monkeypatch.setenv('JAX_NUM_PROCESSES', '3')
  with pytest.raises(ValueError, match='is 2, but JAX_NUM_PROCESSES is 3'):
    multihost.start(2)


@pytest.mark.parametrize('count, hosts', [(5, 2), (1, 3), (6, 3), (0, 2)])
def test_shares_are_gathered(monkeypatch, count, hosts):
  """Every row once, in order, also where some processes have none."""
  rows = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
  passed = []

  def allgather(local, tiled):
    assert tiled
    passed.append(local)
    return np.concatenate(passed)

  monkeypatch.setattr(jax, 'process_count', lambda: hosts)
  monkeypatch.setattr(multihost.multihost_utils, 'process_allgather', allgather)
  for index in range(hosts):
    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    found = multihost.gather(rows[list(multihost.share(count))], count)
  assert np.array_equal(found, rows)
  assert len({part.shape for part in passed}) == 1  # a condition of the sharing


def test_stop():
  stop = stop_notice.PreemptionNotice()
  assert not stop.requested(1)
  os.kill(os.getpid(), signal.SIGTERM)
  assert stop.requested(2)
  stop.close()


@pytest.mark.slow
def test_two_processes_stop_and_one_resumes(tmp_path):
  """SIGTERM to one process saves on both; one process resumes the run."""
  config = 'tests/support/tiny_config.py'
  flags = ['--config.optimizer.cosine=False', '--config.checkpoint.every=9999']
  two = processes.Run(
    2, config, tmp_path, *flags, '--config.total_steps=100000'
  )
  two.wait_for_step(2)
  two.signal(1)
  assert two.wait() == [0, 0], two.tails()
  stopped = len(two.metrics())
  assert (tmp_path / 'checkpoints' / str(stopped)).is_dir()
  last = stopped + 2
  one = processes.Run(
    1, config, tmp_path, *flags, f'--config.total_steps={last}'
  )
  assert one.wait() == [0], one.tails()
  assert [m['step'] for m in one.metrics()] == list(range(1, last + 1))
  # Each process read its rows, and the second run began where the first ended.
  for step in range(stopped):
    assert sorted(r for s, r in two.records() if s == step) == [0, 1, 2, 3]
  assert min(step for step, _ in one.records()) == stopped
