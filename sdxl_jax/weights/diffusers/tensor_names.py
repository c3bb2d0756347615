"""Maps our parameters to published diffusers and transformers tensors, by rule.

Our modules have the published names, so a rule is enough:
- a digit joins its neighbour: `resnets.0.conv1` is resnets_0/conv1;
- `weight` is our kernel, scale (of a norm) or embedding;
- kernels are stored input channels before output channels, the published ones
  the other way round;
- a stack that runs under nn.scan is one module without index, whose parameters
  have a leading axis: transformer_blocks/norm1/scale[3] is
  `transformer_blocks.3.norm1.weight`.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import traverse_util

from sdxl_jax.models import stored_kernels
from sdxl_jax.weights import (
  array_filling,
  checked_cast,
  leftovers,
  quantization,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import spellings

Path = tuple[str, ...]
Tensors = dict[str, safetensors_file.LazyTensor]
Tree = dict[str, Any]  # of arrays, or of jax.ShapeDtypeStruct
STACKS = ('transformer_blocks', 'layers')


@dataclasses.dataclass(frozen=True)
class TensorLocation:
  """The place of a published tensor in our tree."""

  path: Path
  index: int | None  # in the stack of its blocks
  shape: tuple[int, ...]  # as published


@functools.cache
def published_name(path: Path) -> str:
  """Translates a path of ours, unstacked, to the published name."""
  *modules, leaf = path
  # `linear_1` is a published name in itself, not the second of a list.
  modules = [re.sub(r'(?<!linear)(?<!ln)_(\d+)$', r'.\1', m) for m in modules]
  leaf = 'weight' if leaf in ('kernel', 'scale', 'embedding') else leaf
  return '.'.join([*modules, leaf])


def unstack(path: Path, index: int | None) -> Path:
  """Returns the path that block `index` of a stack has without nn.scan."""
  return tuple(f'{m}_{index}' if m in STACKS else m for m in path)


def stack_depth(path: Path, leaf: Any) -> int | None:
  """Returns the number of blocks in a leaf; None: it is not of a stack."""
  return leaf.shape[0] if set(path) & set(STACKS) else None


def axes(path: Path, ndim: int) -> tuple[int, ...]:
  """Returns our axes in the published order: HWIO to OIHW, IO to OI."""
  if path[-1] != 'kernel':
    return tuple(range(ndim))
  return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]


def locations(flat: dict[Path, Any]) -> dict[str, TensorLocation]:
  """Returns {published name: location} of a flat tree {path: leaf}."""
  by_name = {}
  for path, leaf in flat.items():
    if path[-1] == stored_kernels.SCALE:
      continue  # files do not have the scales
    depth = stack_depth(path, leaf)
    shape = leaf.shape if depth is None else leaf.shape[1:]
    shape = tuple(shape[axis] for axis in axes(path, len(shape)))
    # Each block of a stack is a published tensor of its own.
    for index in [None] if depth is None else range(depth):
      name = published_name(unstack(path, index))
      by_name[name] = TensorLocation(path, index, shape)
  return dict(sorted(by_name.items()))


def tensor(flat: dict[Path, Any], location: TensorLocation) -> np.ndarray:
  """Returns a tensor in the published layout; of a numpy leaf, a view."""
  array = flat[location.path]
  index = location.index
  array = np.asarray(array if index is None else array[index])
  return array.transpose(axes(location.path, array.ndim))


def flat(tree: Tree) -> dict[Path, Any]:
  """Flattens a tree of ours to {path: leaf}."""
  return traverse_util.flatten_dict(tree)


def tensors(params: Tree) -> Tensors:
  """Returns {published name: tensor} of our tree, as views."""
  leaves = flat(params)
  return {
    name: safetensors_file.LazyTensor(
      location.shape,
      np.dtype(leaves[location.path].dtype),
      functools.partial(tensor, leaves, location),
    )
    for name, location in locations(leaves).items()
  }


def lazy(shapes: Tree, load: Callable[[], Tree]) -> Tensors:
  """Returns {published name: tensor} of a tree that the first read loads.

  Args:
    shapes: tree of jax.ShapeDtypeStruct.
    load: () -> the tree, which stays in memory as long as one of the tensors.
  """
  leaves = functools.cache(lambda: flat(load()))

  def read(location):
    return tensor(leaves(), location)

  return {
    name: dataclasses.replace(unread, read=functools.partial(read, location))
    for (name, location), unread in zip(
      locations(flat(shapes)).items(), tensors(shapes).values()
    )
  }


def match_to_model(
  published: Tensors, target: Tree, skip_unsupported: bool = False
) -> Tensors:
  """Renames published tensors to today's names, in the shapes of the net.

  Args:
    published: {name of an older or newer library: tensor}; known companions
      that change nothing are passed over.
    target: our tree of shapes.
    skip_unsupported: see companions.check.

  Raises:
    ValueError: if names are left over on either side, a shape differs, or a
      tensor is not floating-point. No tensor is read, unless two have one name.
  """
  expected = {n: x.shape for n, x in locations(flat(target)).items()}
  stored = spellings.unify(published)
  leftovers.check(stored, expected, skip_unsupported)
  return {name: fit(stored[name], expected[name], name) for name in expected}


def surplus(published: Tensors, target: Tree) -> list[str]:
  """Lists the names in their file of tensors that a net does not have."""
  expected = locations(flat(target))
  return [
    tensor.name or name
    for name, tensor in published.items()
    if spellings.canonical_name(name) not in expected
  ]


def from_published(
  published: Tensors,
  target: Tree,
  skip_unsupported: bool = False,
  watch: Callable[[int], Any] = lambda count: None,
) -> Tree:
  """Loads published tensors into our tree, a few arrays at a time.

  Args:
    published: {name: tensor}.
    target: our tree of shapes and dtypes, stacked or not. Tensors are cast to
      its dtypes, and each array is placed on the `sharding` of its leaf;
      without one it stays in numpy. Kernels with a scale are quantised one by
      one.
    skip_unsupported: see companions.check.
    watch: called with the bytes of each array of the tree that was loaded.

  Raises:
    ValueError: as `match_to_model`, before any tensor is read; or if a number
      overflows in the target's dtype.
  """
  # All names and shapes are checked before the first, slow read.
  matched = match_to_model(published, target, skip_unsupported)
  leaves, parts = flat(target), collections.defaultdict(list)
  for name, location in locations(leaves).items():
    parts[location.path].append((matched[name], location))

  def views(path, array):
    return [(part, tensor({path: array}, at)) for part, at in parts[path]]

  quantized = quantization.stored_layers(leaves)

  def finish(path, array):
    targets = [leaves[p] for p in quantization.pair(path)]
    arrays = quantization.quantize(array, *targets)
    return [array_filling.put(x, t.sharding) for x, t in zip(arrays, targets)]

  wanted = {}
  for path, leaf in leaves.items():
    sharding = getattr(leaf, 'sharding', None)
    read = functools.partial(views, path)
    if path[-1] == 'kernel' and path[:-1] in quantized:
      wanted[path] = array_filling.Wanted(
        leaf.shape, np.float32, None, read, functools.partial(finish, path)
      )
    elif path[-1] != stored_kernels.SCALE:
      wanted[path] = array_filling.Wanted(
        leaf.shape, leaf.dtype, sharding, read
      )
  made = dict(zip(wanted, array_filling.fill(list(wanted.values()), watch)))
  for layer in quantized:
    kernel, scale = quantization.pair((*layer, 'kernel'))
    made[kernel], made[scale] = made[kernel]
  return traverse_util.unflatten_dict({path: made[path] for path in leaves})


def fit(
  stored: safetensors_file.LazyTensor, shape: tuple[int, ...], name: str
) -> safetensors_file.LazyTensor:
  """Returns a tensor in the shape of the net, or raises ValueError."""
  if not leftovers.is_fitting(stored.shape, shape):
    raise ValueError(
      f'{stored.name or name} has the shape {stored.shape}, but the config '
      f'requires {shape}: the weights are of another architecture'
    )
  if not checked_cast.is_floating(stored.dtype):
    raise ValueError(
      f'{stored.name or name} is stored as {stored.dtype}: quantised weights '
      'are not supported, use those in float16 or longer'
    )
  return stored if stored.shape == shape else stored.reshape(shape)
