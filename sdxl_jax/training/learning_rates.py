"""Learning rates of parts: factors of the base rate, by parameters' paths.

A rule is a pair (pattern, factor). A pattern matches the whole path of a
parameter, such as unet/down_blocks_1/attentions_0/proj_in/kernel. The first
rule that matches counts; what none matches has the base rate. With a factor of
0 a parameter is frozen: there is no gradient, no moment and no average of it.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from sdxl_jax.ema import partial_trees
from sdxl_jax.training import train_state

Rule = tuple[str, float]
SHOWN = 4  # paths in an error
FIELD = 'config.optimizer.rates'


def factor(rules: Sequence[Rule], path: str) -> float:
  """Returns the factor of a parameter's rate, by its path."""
  for pattern, value in rules:
    if re.fullmatch(pattern, path):
      return value
  return 1.0


def freezes(rules: Sequence[Rule]) -> bool:
  """Whether a rule freezes what it matches."""
  return any(value == 0 for _, value in rules)


def check(rules: Sequence[Rule], params: Any) -> None:
  """Raises ValueError for a rule of no effect, or if nothing is trained.

  Args:
    rules: of a config.
    params: {net: tree of parameters}, all that the config trains.
  """
  paths = list(partial_trees.flat(params))
  left = set(paths)
  for pattern, value in rules:
    matched = {path for path in paths if re.fullmatch(pattern, path)}
    if not matched:
      examples = ', '.join(spread(paths))
      raise ValueError(
        f'{FIELD} has {pattern!r}, which matches no trained parameter as a '
        f'whole: write a regular expression over paths such as {examples}'
      )
    if not matched & left:
      raise ValueError(
        f'{FIELD} has {pattern!r}, but all {len(matched)} parameters that it '
        'matches have a rule before it, which counts: move it forward, or '
        f'remove it and its factor {value:g}'
      )
    left -= matched
  if paths and all(factor(rules, path) == 0 for path in paths):
    raise ValueError(
      f'{FIELD} freezes all {len(paths)} parameters that config.trained names: '
      'give some of them a factor above 0'
    )


def spread(paths: Sequence[str]) -> list[str]:
  """Returns a few paths, from all parts of a list."""
  return [*paths[:: max(1, -(-len(paths) // SHOWN))]]


def scaled(
  transformation: optax.GradientTransformation, rules: Sequence[Rule]
) -> optax.GradientTransformation:
  """Multiplies the updates of a transformation by the factors.

  The state stays the same tree, so that rules can be added to a run.
  """
  if not rules:
    return transformation

  def update(updates, state, params=None):
    updates, state = transformation.update(updates, state, params)

    def scale(path, x):
      value = factor(rules, partial_trees.path_of(path))
      return x if value == 1 else x * value

    return jax.tree_util.tree_map_with_path(scale, updates), state

  return optax.GradientTransformation(transformation.init, update)


def is_trained(rules: Sequence[Rule]) -> Callable[[str], bool]:
  """Makes the function of a path: whether the parameter is trained."""
  return lambda path: factor(rules, path) > 0


def of_trained(
  optimizer: optax.GradientTransformation, rules: Sequence[Rule]
) -> optax.GradientTransformation:
  """Makes an optimizer whose state leaves out what is frozen.

  Args:
    optimizer: its `update` is called with gradients and parameters of what is
      trained, see train_state.make_update.
    rules: are checked against the parameters that `init` is called with.
  """
  if not rules:
    return optimizer

  def init(params):
    check(rules, params)
    return optimizer.init(partial_trees.select(params, is_trained(rules)))

  return optax.GradientTransformation(init, optimizer.update)


def train_part(
  task: train_state.Task, rules: Sequence[Rule]
) -> train_state.Task:
  """Makes a Task that computes no gradient of what is frozen.

  Args:
    task: its gradients accept a net of which a part is among the frozen ones.
    rules: of the config.
  """
  if not freezes(rules):
    return task
  chosen = is_trained(rules)

  def trained(params):
    return partial_trees.select(params, chosen)

  def gradients(params, frozen, *args):
    still = partial_trees.select(params, lambda path: not chosen(path))
    return task.gradients(
      trained(params), partial_trees.merge(frozen, still), *args
    )

  return dataclasses.replace(task, gradients=gradients, trained=trained)
