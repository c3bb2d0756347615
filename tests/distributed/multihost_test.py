"""Starting, agreeing and stopping, alone and with others."""

import os
import signal

import pytest

from sdxl_jax.distributed import multihost
from tests.support import processes


def test_alone():
  multihost.start(1)
  assert multihost.is_primary()
  assert multihost.describe().startswith('1 processes, ')
  multihost.check_equal_across_hosts({'config': 'a', 'set of versions': 'b'})


@pytest.mark.parametrize('name', multihost.LAUNCHERS)
def test_several_were_started_but_one_is_expected(monkeypatch, name):
  monkeypatch.setenv(name, '4')
  with pytest.raises(ValueError, match='processes is 1, but 4 were started'):
    multihost.start(1)


def test_another_number_was_started(monkeypatch):
  monkeypatch.setenv('JAX_NUM_PROCESSES', '3')
  with pytest.raises(ValueError, match='is 2, but JAX_NUM_PROCESSES is 3'):
    multihost.start(2)


def test_stop():
  stop = multihost.PreemptionNotice()
  assert not stop.requested(1)
  os.kill(os.getpid(), signal.SIGTERM)
  assert stop.requested(2)
  stop.close()


def test_two_processes_stop_and_one_goes_on(tmp_path):
  """SIGTERM to one saves on both; another number of processes resumes."""
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
  # Each took its rows; the second began where the first had ended.
  rows = lambda run, part: sorted(r for p, r in run.records() if p == part)
  assert all(rows(two, part) == [0, 1, 2, 3] for part in range(stopped))
  assert min(part for part, _ in one.records()) == stopped
