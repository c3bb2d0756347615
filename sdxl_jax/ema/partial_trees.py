"""Parts of trees of nested dicts: of what is trained, and of what is frozen."""

from collections.abc import Callable
from typing import Any

import jax

Tree = Any  # of nested dicts


def select(tree: Tree, chosen: Callable[[str], bool]) -> Tree:
  """Returns the leaves with a chosen path, and no dict that would be empty.

  Args:
    tree: of nested dicts.
    chosen: takes the path of a leaf, its names joined by '/'.
  """

  def within(node, path):
    found = {}
    for name, value in node.items():
      here = f'{path}{name}'
      if isinstance(value, dict):
        value = within(value, f'{here}/')
        if value:
          found[name] = value
      elif chosen(here):
        found[name] = value
    return found

  return within(tree, '')


def like(tree: Tree, part: Tree) -> Tree:
  """Returns what a tree has at the paths of a part of it."""
  if not isinstance(part, dict):
    return tree
  return {name: like(tree[name], value) for name, value in part.items()}


def merge(tree: Tree, part: Tree) -> Tree:
  """Returns a tree with the leaves of another in place of, or beside, its own.

  Args:
    tree: of nested dicts.
    part: of nested dicts; its leaves are taken where both have one.
  """
  if not (isinstance(tree, dict) and isinstance(part, dict)):
    return part
  merged = {
    name: merge(tree[name], value) if name in tree else value
    for name, value in part.items()
  }
  return tree | merged


def flat(tree: Tree) -> dict[str, Any]:
  """Returns {path: leaf}; the path's names are joined by '/'."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_of(path): leaf for path, leaf in leaves}


def path_of(path: tuple[Any, ...]) -> str:
  """Joins the keys of a JAX path by '/'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')
