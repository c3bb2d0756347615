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
  """Returns a line on all nets, and one for each that has not moved.

  Args:
    nets: that were compared.
    updates: between the comparison's two sides.
    rate: the highest learning rate of these updates.

  Raises:
    ValueError: if no parameter at all has moved, although there is a rate.
  """
  if not nets:
    return []
  lines = [line for net in nets for line in faults(net, updates, rate)]
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


def faults(net: Net, updates: int, rate: float) -> Iterator[str]:
  """Yields what of a net has not moved, and why; nothing if all has."""
  start = f'after {updates} updates'
  remedy = (
    f'the learning rate was at most {rate:.2g}, too small for their type; see '
    'config.optimizer.learning_rate, clip_norm and param_dtype of the net'
  )
  if len(net.still) == net.arrays:
    yield (
      f'{start} the gradient of {net.name} is still 0: the loss does not '
      'depend on it, or config.optimizer.clip_norm leaves nothing of it'
    )
  elif net.is_still:
    yield f'{start} no parameter of {net.name} has moved: {remedy}'
  elif net.moved < FEW:
    share = f'only {net.moved:.1%} of the parameters of {net.name}'
    yield f'{start} {share} have moved: {remedy}'
  if net.ema_moved < FEW * net.moved:
    yield (
      f'{start} the EMA of {net.name} has moved in {net.ema_moved:.1%} of its '
      f'numbers only, the parameters in {net.moved:.1%}; see '
      'config.optimizer.ema_decay'
    )
