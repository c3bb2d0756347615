"""Says what of the parameters and of their EMA has moved, and what has not."""

import dataclasses
from collections.abc import Iterator, Sequence

FEW = 0.5  # share of moved parameters under which there is a warning
SHOWN = 3  # arrays named in a line


@dataclasses.dataclass(frozen=True)
class Net:
  """What became of one net; shares are of the parameters with a gradient."""

  name: str
  arrays: int
  still: tuple[str, ...]  # arrays without any gradient
  moved: float  # share of the parameters that are no longer the same
  ema_moved: float  # the same of their average

  @property
  def is_still(self) -> bool:
    """Whether no parameter has moved."""
    return self.moved == 0


def report(nets: Sequence[Net], updates: int, rate: float) -> list[str]:
  """Returns a line on all nets, or the warnings of what has not moved.

  Args:
    nets: that were compared.
    updates: between the comparison's two sides.
    rate: the highest learning rate of these updates; with an optimizer that
      estimates it, times its estimate.

  Raises:
    ValueError: if no parameter at all has moved, although there is a rate.
  """
  if not nets:
    return []
  lines = list(faults(nets, updates, rate))
  if rate > 0 and all(net.is_still for net in nets):
    raise ValueError(
      f'nothing is trained: {"; ".join(lines)}. Correct the config and start '
      'again'
    )
  if lines:
    return [f'warning: {line}' for line in lines]
  names = ', '.join(map(describe, nets))
  return [f'after {updates} updates parameters and EMA have moved: {names}']


def describe(net: Net) -> str:
  """Names a net, and the arrays of it that have no gradient."""
  if not net.still:
    return net.name
  count = f'{len(net.still)} of {net.arrays}'
  return (
    f'{net.name} (but {count} arrays have no gradient: {listed(net.still)})'
  )


def listed(names: Sequence[str]) -> str:
  """Joins the first of some names."""
  return ', '.join([*names[:SHOWN], *(['...'] if len(names) > SHOWN else [])])


def faults(nets: Sequence[Net], updates: int, rate: float) -> Iterator[str]:
  """Yields what of the nets has not moved, and why; nothing if all has."""
  start = f'after {updates} updates'
  remedy = (
    f'the learning rate was at most {rate:.2g}, too small for their type; see '
    'config.optimizer.learning_rate, clip_norm, d0 of an estimated rate, and '
    'param_dtype of the net'
  )
  cut_off = [net.name for net in nets if len(net.still) == net.arrays]
  if cut_off:
    yield (
      f'{start} the gradient of {", ".join(cut_off)} is still 0: the loss does '
      'not depend on it, or config.optimizer.clip_norm leaves nothing of it'
    )
  still = [n.name for n in nets if n.is_still and n.name not in cut_off]
  if still:
    yield f'{start} no parameter of {", ".join(still)} has moved: {remedy}'
  for net in nets:
    if 0 < net.moved < FEW:
      share = f'only {net.moved:.1%} of the parameters of {net.name}'
      yield f'{start} {share} have moved: {remedy}'
    if net.ema_moved < FEW * net.moved:
      yield (
        f'{start} the EMA of {net.name} has moved in {net.ema_moved:.1%} of '
        f'its numbers only, the parameters in {net.moved:.1%}; see '
        'config.optimizer.ema_decay'
      )
