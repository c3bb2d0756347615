"""The share of a GPU's memory that JAX allocates, by the environment."""

import os

import pytest

from sdxl_jax.distributed import gpu_memory


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  # Set first, so that they are removed again after the test.
  for name in gpu_memory.VARIABLES:
    monkeypatch.setenv(name, '')
    monkeypatch.delenv(name)


def test_a_process_of_its_own_takes_more():
  assert gpu_memory.fraction() == gpu_memory.SHARE > 0.75  # JAX's default
  gpu_memory.enlarge()
  assert gpu_memory.fraction() == gpu_memory.SHARE
  assert float(os.environ['XLA_CLIENT_MEM_FRACTION']) == gpu_memory.SHARE


@pytest.mark.parametrize('name', gpu_memory.VARIABLES)
def test_what_the_user_has_set_stays(name, monkeypatch):
  monkeypatch.setenv(name, '0.5')
  gpu_memory.enlarge()
  assert gpu_memory.fraction() == 0.5
  # JAX refuses both together.
  assert sum(n in os.environ for n in gpu_memory.VARIABLES) == 1
