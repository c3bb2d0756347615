"""The limits of the card: its peak, its memory, and what compiling took."""

import jax
import jax.monitoring

from sdxl_jax.planning import chips

GB = 1e9


def peak():
  """Returns the card's dense bfloat16 FLOPs per second; None: not known."""
  known = {chip.name: chip.flops for chip in chips.GPUS.values()}
  return known.get(jax.devices()[0].device_kind)


def share(flops):
  """Returns the share of the peak that FLOPs per second are, or None."""
  limit = peak()
  return limit and round(flops / limit, 4)


def memory():
  """Returns the GB that JAX took at most so far, or None."""
  stats = jax.devices()[0].memory_stats() or {}
  most = stats.get('peak_bytes_in_use')
  return most and round(most / GB, 2)


class CompileClock:
  """Sums the seconds of compiling, and counts what came from the cache."""

  def __init__(self):
    self.seconds = self.programs = self.cached = 0
    jax.monitoring.register_event_duration_secs_listener(self._duration)
    jax.monitoring.register_event_listener(self._event)

  def _duration(self, event, seconds, **kwargs):
    if event == '/jax/core/compile/backend_compile_duration':
      self.seconds += seconds
      self.programs += 1

  def _event(self, event, **kwargs):
    self.cached += event == '/jax/compilation_cache/cache_hits'

  def restart(self):
    """Begins to count anew."""
    self.seconds = self.programs = self.cached = 0

  def fields(self):
    """Returns what was counted as fields of a line."""
    return {
      'compile_s': round(self.seconds, 2),
      'programs': self.programs,
      'programs_cached': self.cached,
    }
