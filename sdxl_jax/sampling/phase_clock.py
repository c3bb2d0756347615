"""Measures the phases of sampling."""

import time
from typing import Any

import jax


class PhaseClock:
  """Measures seconds by phase, without those that programs are compiled in."""

  def __init__(self) -> None:
    self.spent: dict[str, float] = {}  # seconds, by phase
    self.compiling = 0.0
    self.programs, self.from_cache = 0, 0  # compiled or read, and the latter
    self.last = self.now()
    jax.monitoring.register_event_duration_secs_listener(self.listen)
    jax.monitoring.register_event_listener(self.count)

  def listen(self, event: str, seconds: float, **details: Any) -> None:
    """Takes note of an event that JAX measured."""
    del details
    if event.endswith('backend_compile_duration'):
      self.compiling += seconds
      self.programs += 1

  def count(self, event: str, **details: Any) -> None:
    """Takes note of a program that was in the compilation cache."""
    del details
    self.from_cache += event.endswith('compilation_cache/cache_hits')

  def now(self) -> float:
    """Returns a time in seconds at which compilation stands still."""
    return time.monotonic() - self.compiling

  def stop(self, phase: str) -> None:
    """Adds the seconds since the last stop to a phase."""
    now = self.now()
    self.spent[phase] = self.spent.get(phase, 0.0) + now - self.last
    self.last = now

  def summary(self, count: int) -> str:
    """Returns a line about the phases of a run of `count` images."""
    sampling = self.spent['sampling']
    return (
      f'{self.before_sampling()}, sampling {sampling:.1f} s: '
      f'{sampling / count:.2f} s per image'
    )

  def before_sampling(self) -> str:
    """Returns what was spent before any image could be sampled."""
    return (
      f'loading {self.spent["loading"]:.1f} s, compiling {self.compiling:.1f} '
      f's ({self.programs} programs, {self.from_cache} from the cache)'
    )
