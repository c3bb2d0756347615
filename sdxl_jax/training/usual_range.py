"""Early warnings: metrics that leave the range of a run's last lines.

A range is the median of the last lines and their spread, of the logarithm,
since losses and norms vary by factors. The spread is the median difference of
one line to the next, which neither single lines nor a trend change much. Only
what is above the range is named; to fall is what training is for.
"""

import collections
import itertools
import json
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator
from typing import Any

WINDOW = 20  # lines of metrics that a range is of
LEAST = 10  # lines before there is one
DEVIATIONS = 6.0  # standard deviations above the median that are usual
# From the median difference of two numbers of a normal distribution to its
# standard deviation.
SCALE = 1.4826 / math.sqrt(2)
# {metric: factor above the median within which it is usual in any case}. The
# EMA distance follows the rate, which a warm-up raises.
FACTORS = {'loss': 1.5, 'grad_norm': 10.0, 'ema_distance': 3.0}
REMEDY = {
  'loss': 'look at the latest samples and records',
  'grad_norm': 'config.optimizer.clip_norm limits what an update takes of it',
  'ema_distance': 'the parameters move faster than their average follows',
}


class UsualRange:
  """Follows the lines of a run.

  Args:
    say: prints a line for the user.
    path: metrics.jsonl with the lines of earlier starts, which are taken as
      they are; None: there are none.
  """

  def __init__(
    self, say: Callable[[str], Any], path: pathlib.Path | None = None
  ):
    self._say = say
    self._values = {name: collections.deque(maxlen=WINDOW) for name in FACTORS}
    self._outside = set()  # metrics that were named, and have not come back
    for metrics in read(path, WINDOW) if path else ():
      self._add(metrics)

  def follow(self, step: int, metrics: dict[str, float]) -> None:
    """Compares a line with those before it, and prints what left its range.

    A metric is named once, and again only after it came back.

    Args:
      step: optimizer steps done.
      metrics: {name: value} of the line.
    """
    for name, high in self._limits().items():
      value = metrics.get(name, 0.0)
      if value <= high:
        self._outside.discard(name)
      elif name not in self._outside:
        self._outside.add(name)
        self._say(self._describe(step, name, value, high))
    self._add(metrics)

  def _add(self, metrics):
    """Adds the metrics of a line to the windows."""
    for name, values in self._values.items():
      value = metrics.get(name, 0.0)
      if value > 0 and math.isfinite(value):
        values.append(math.log(value))

  def _limits(self):
    """Returns {metric: largest usual value} of those with enough lines."""
    limits = {}
    for name, values in self._values.items():
      if len(values) >= LEAST:
        middle = statistics.median(values)
        steps = (abs(y - x) for x, y in itertools.pairwise(values))
        spread = statistics.median(steps)
        width = max(DEVIATIONS * SCALE * spread, math.log(FACTORS[name]))
        limits[name] = math.exp(min(middle + width, 80.0))
    return limits

  def _describe(self, step, name, value, high):
    """Returns the line on a metric."""
    values = self._values[name]
    middle = math.exp(statistics.median(values))
    return (
      f'warning: {name} is {value:.4g} at step {step}, above its usual range '
      f'(up to {high:.4g}, in the middle {middle:.4g} over the last '
      f'{len(values)} lines): {REMEDY[name]}; --from_step goes back to an '
      'earlier checkpoint with a lower config.optimizer.learning_rate'
    )


def read(path: pathlib.Path, count: int) -> Iterator[dict[str, float]]:
  """Yields the metrics of the last lines on steps of a metrics.jsonl."""
  if path.exists():
    lines = map(json.loads, path.read_text().splitlines())
    # Validation has lines of its own.
    yield from [metrics for metrics in lines if 'loss' in metrics][-count:]
