"""Checks after the first updates that parameters and EMA have moved.

Some elements of each array are kept from before the first update, and compared
once with those after the last of them: a few thousand numbers per array, taken
on the devices, and no wait for the host but that one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sdxl_jax.distributed import multihost, sharding
from sdxl_jax.ema import partial_trees, transform
from sdxl_jax.training import (
  estimated_rates,
  gradient_traces,
  movement_report,
  train_state,
)

PER_AXIS = 16  # elements taken along each axis of an array
# Updates before the check. Behind a layer that begins with zeros there is no
# gradient in the first update; in the UNet up to three lie one behind another.
UPDATES = 5
# The same of an optimizer that estimates its rate, which begins at a millionth.
UPDATES_ESTIMATED = 100


class Check:
  """Compares the nets before an update with those some updates later.

  Args:
    mesh: of the run.
    nets: names of the nets to compare.
    start, end: optimizer steps done when they are taken; the end moves on
      where updates are left out.
  """

  def __init__(
    self,
    mesh: jax.sharding.Mesh,
    nets: Sequence[str],
    start: int,
    end: int,
  ):
    self.nets, self.start, self.end = tuple(nets), start, end
    self.updates = end - start
    self._take = jax.jit(take, out_shardings=sharding.replicated(mesh))
    self._before = None

  def follow(
    self, done: int, state: train_state.State
  ) -> list[movement_report.Net]:
    """Returns what became of each net once all updates are done, else [].

    Args:
      done: optimizer steps done.
      state: after them; it may be donated afterwards.
    """
    if done == self.start:
      self._before = self._take(values_of(state, self.nets))
    if done != self.end or self._before is None:
      return []
    after = self._take(values_of(state, self.nets))
    before, after = jax.device_get((self._before, after))
    # Steps that were left out moved nothing: as many more are waited for.
    missing = self.updates - int(after['updates'] - before['updates'])
    if missing > 0:
      self.end += missing
      return []
    self._before = None
    params = partial_trees.flat(state.params)
    sizes = {path: x.size for path, x in params.items()}
    nets = [compare(name, before, after, sizes) for name in self.nets]
    return [net for net in nets if net.arrays]


def values_of(state: train_state.State, nets: Sequence[str]) -> dict[str, Any]:
  """Returns {'params', 'ema', 'traces': {path: array}} of some nets of a State.

  `traces` are those of the gradient in the optimizer's state, which parameters
  that are frozen on purpose do not have, see gradient_traces. 'updates' is the
  number of those that were taken.
  """
  params = partial_trees.flat(state.params)
  traces = gradient_traces.of(state.opt_state, params)
  found = {
    'params': params,
    'ema': partial_trees.flat(transform.ema_params(state.opt_state)),
    'traces': traces,
  }
  chosen = {
    field: {
      path: x
      for path, x in arrays.items()
      if path.split('/')[0] in nets and path in traces
    }
    for field, arrays in found.items()
  }
  return chosen | {'updates': transform.updates(state.opt_state)}


def take(values: dict[str, Any]) -> Any:
  """Returns some elements of each array, evenly spaced, the last included.

  The last row of a table of tokens is the token that pads all captions.
  """

  def some(x):
    steps = [-(-n // PER_AXIS) for n in x.shape]
    places = [slice((n - 1) % s, n, s) for n, s in zip(x.shape, steps)]
    return x[tuple(places)]

  return jax.tree.map(some, values)


def compare(
  name: str,
  before: dict[str, Any],
  after: dict[str, Any],
  sizes: dict[str, int],
) -> movement_report.Net:
  """Compares the elements of a net, each array weighed by its size.

  Args:
    name: of the net.
    before, after: elements, as `take` returns them.
    sizes: {path: number of elements} of the whole arrays.
  """
  paths = [p for p in after['params'] if p.split('/')[0] == name]
  still, driven, moved, ema_moved = [], 0.0, 0.0, 0.0
  for path in paths:
    # Where all traces are, NaN too, there was one.
    has_gradient = np.ones(after['params'][path].shape, bool)
    for trace in after['traces'][path]:
      has_gradient &= trace != 0
    if not has_gradient.any():
      still.append(path)
      continue
    # Numbers of bfloat16 compare as those of numpy do.
    changed = after['params'][path] != before['params'][path]
    ema_changed = after['ema'][path] != before['ema'][path]
    weight = sizes[path] / has_gradient.size
    driven += weight * has_gradient.sum()
    moved += weight * (has_gradient & changed).sum()
    ema_moved += weight * (has_gradient & ema_changed).sum()
  whole = driven or 1.0
  return movement_report.Net(
    name, len(paths), tuple(still), moved / whole, ema_moved / whole
  )


def last_update(
  rates: np.ndarray, start: int, updates: int = UPDATES
) -> int | None:
  """Finds the step after which all that is trained must have moved.

  By then the rates of the updates add up to the highest rate of the run: a
  warm-up begins with rates that are too small to see, a decay ends with such.

  Args:
    rates: float [steps], the learning rate of each step of the run.
    start: optimizer steps done before the first update.
    updates: of any rate that there must be.

  Returns:
    Optimizer steps done at the check; None if too few are left for one.
  """
  left = rates[start:]
  if not len(left):
    return None
  enough = np.cumsum(left, dtype=np.float64) >= rates.max() * (1 - 1e-6)
  # With a rate of 0 all along, updates count without moving anything.
  counts = np.cumsum((left > 0) | (rates.max() == 0)) >= updates
  due = np.flatnonzero(enough & counts)
  if len(due):
    return start + int(due[0]) + 1
  # A run of fewer updates is checked at its end, if it is seen from its start.
  return len(rates) if start == 0 else None


def make_checks(
  mesh: jax.sharding.Mesh,
  nets: Sequence[str],
  first_steps: dict[str, int],
  rates: np.ndarray,
  done: int,
  updates: int = UPDATES,
) -> list[Check]:
  """Makes the checks of a start, for nets that take part from the same step.

  Args:
    mesh: of the run.
    nets: that are trained.
    first_steps: {net: first step with a gradient}, of those that wait for it.
    rates: float [steps], the learning rate of each step.
    done: optimizer steps done at this start.
    updates: of any rate before a check.
  """
  together = {}
  for net in nets:
    start = max(done, first_steps.get(net, 0))
    together.setdefault(start, []).append(net)
  ends = {start: last_update(rates, start, updates) for start in together}
  return [
    Check(mesh, names, start, ends[start])
    for start, names in together.items()
    if ends[start] is not None
  ]


class Movement:
  """The checks of a start of a run, and what is said of them.

  Args:
    checks: of some nets each.
    rates: float [steps], the learning rate of each step.
    say: prints a line for the user.
  """

  def __init__(
    self,
    checks: Sequence[Check],
    rates: np.ndarray,
    say: Callable[[str], None],
  ):
    self._checks, self._rates, self._say = list(checks), rates, say

  @property
  def is_open(self) -> bool:
    """Whether a check is still to come."""
    return bool(self._checks)

  def is_due(self, done: int) -> bool:
    """Whether a check ends after `done` steps."""
    return any(check.end == done for check in self._checks)

  def follow(self, done: int, state: train_state.State) -> None:
    """Looks at the State after `done` steps, if one of the checks needs it.

    Raises:
      ValueError: if nothing at all has moved, although there is a rate.
    """
    for check in self._checks:
      nets = check.follow(done, state)
      rate = float(self._rates[check.start : check.end].max(initial=0.0))
      estimate = estimated_rates.estimate(state.opt_state) if nets else None
      if estimate is not None:  # which only grows
        rate *= float(multihost.fetch(estimate))
      for line in movement_report.report(nets, check.updates, rate):
        self._say(line)
    # Steps after the last check cost nothing.
    self._checks = [check for check in self._checks if check.end > done]
