"""Our parameters <> published diffusers and transformers tensors, by rule.

Our modules bear the published names, so a rule is enough:
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

import jax
import numpy as np
from flax import traverse_util

from sdxl_jax.weights import safetensors_file

STACKS = ('transformer_blocks', 'layers')


@dataclasses.dataclass(frozen=True)
class TensorLocation:
  """Where in our tree a published tensor lives."""

  path: tuple[str, ...]
  index: int | None  # in its stack
  shape: tuple[int, ...]  # as published


def published(path):
  """Our path, unstacked > the published name."""
  *modules, leaf = path
  # `linear_1` is a published name in itself, not the second of a list.
  modules = [re.sub(r'(?<!linear)_(\d+)$', r'.\1', m) for m in modules]
  leaf = 'weight' if leaf in ('kernel', 'scale', 'embedding') else leaf
  return '.'.join([*modules, leaf])


def canonical_name(name):
  """A published name, of an older or newer library > the name of today."""
  # The first autoencoders had other names for attention.
  name = re.sub(r'(attentions\.\d+)\.(query|key|value)\.', rename, name)
  name = re.sub(r'(attentions\.\d+)\.proj_attn\.', r'\1.to_out.0.', name)
  # transformers 5 drops this prefix in memory, and some files are without it.
  bare = r'embeddings\.|encoder\.layers\.|final_layer_norm\.'
  return re.sub(rf'^(?={bare})', 'text_model.', name)


def rename(match):
  return f'{match[1]}.to_{match[2][0]}.'


def unstack(path, index):
  """Path of a stack > path of its block `index`, as if it were not stacked."""
  return tuple(f'{m}_{index}' if m in STACKS else m for m in path)


def stack_depth(path, leaf):
  """How many blocks the leaf holds, or None where it is not of a stack."""
  return leaf.shape[0] if set(path) & set(STACKS) else None


def axes(path, ndim):
  """The axes of our array in the published order: HWIO > OIHW, IO > OI."""
  if path[-1] != 'kernel':
    return tuple(range(ndim))
  return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]


def locations(flat):
  """{published name: Slot} of all the leaves of a flat tree {path: leaf}."""
  found = {}
  for path, leaf in flat.items():
    depth = stack_depth(path, leaf)
    shape = leaf.shape if depth is None else leaf.shape[1:]
    shape = tuple(shape[axis] for axis in axes(path, len(shape)))
    for index in [None] if depth is None else range(depth):
      found[published(unstack(path, index))] = TensorLocation(
        path, index, shape
      )
  return dict(sorted(found.items()))


def tensor(flat, slot):
  """The tensor of a slot in the published layout; of numpy leaves, a view."""
  array = flat[slot.path]
  array = np.asarray(array if slot.index is None else array[slot.index])
  return array.transpose(axes(slot.path, array.ndim))


def flat(tree):
  """{path: leaf} of a tree of ours."""
  return traverse_util.flatten_dict(tree)


def tensors(params):
  """{published name: Tensor} of our tree, as views."""
  leaves = flat(params)
  return {
    name: safetensors_file.LazyTensor(
      slot.shape,
      np.dtype(leaves[slot.path].dtype),
      functools.partial(tensor, leaves, slot),
    )
    for name, slot in locations(leaves).items()
  }


def lazy(shapes, load):
  """{published name: Tensor} of a tree that is loaded when one is read.

  Args:
    shapes: tree of jax.ShapeDtypeStruct.
    load: () -> the tree; it is held as long as one of the Tensors.
  """
  leaves = functools.cache(lambda: flat(load()))
  read = lambda slot: tensor(leaves(), slot)
  return {
    name: dataclasses.replace(empty, read=functools.partial(read, slot))
    for (name, slot), empty in zip(
      locations(flat(shapes)).items(), tensors(shapes).values()
    )
  }


def match_to_model(found, target):
  """Published tensors under the names of today, each in the shape of the net.

  Args:
    found: {published name, of an older or newer library: Tensor}.
    target: our tree of shapes.

  Raises:
    ValueError: for names that are left over on either side, another shape, or
      numbers that are not floating; nothing is read.
  """
  wanted = locations(flat(target))
  # A buffer of older transformers: 0..76.
  found = {n: t for n, t in found.items() if not n.endswith('.position_ids')}
  today = {canonical_name(name): name for name in found}
  if len(today) < len(found):
    twice = sorted(set(found) - set(today.values()))
    raise ValueError(f'{format_list(twice)}: there under another name too')
  check_leftovers(today, wanted)
  return {
    name: fit(found[today[name]], slot.shape, today[name])
    for name, slot in wanted.items()
  }


def from_published(found, target):
  """Published tensors > our tree, one array at a time.

  Args:
    found: {published name: Tensor}.
    target: our tree of shapes and dtypes, stacked or not; tensors are cast to
      its dtypes. An array goes where its leaf has a `sharding`; without one
      it stays in numpy.

  Raises:
    ValueError: as `matched` does, before anything is read.
  """
  found, parts = match_to_model(found, target), collections.defaultdict(list)
  for name, slot in locations(flat(target)).items():
    parts[slot.path].append((found[name], slot))
  tree = {}
  for path, leaf in flat(target).items():
    array = np.empty(leaf.shape, leaf.dtype)
    for part, slot in parts[path]:
      tensor({path: array}, slot)[...] = part.read()
    tree[path] = put(array, getattr(leaf, 'sharding', None))
  return traverse_util.unflatten_dict(tree)


def put(array, sharding):
  """An array, as numpy and the same in every process > to its place."""
  if sharding is None:
    return array
  part = lambda index: array[index]
  return jax.make_array_from_callback(array.shape, sharding, part)


def fit(found, shape, name):
  """The Tensor in the shape that a net asks for."""
  # The first autoencoders stored attention as convolutions of size one.
  if len(found.shape) == 4 and len(shape) == 2 and found.shape[2:] == (1, 1):
    found = reshaped(found, found.shape[:2])
  if found.shape != shape:
    raise ValueError(
      f'{name} has the shape {found.shape}, but the config asks for '
      f'{shape}: the weights are of another architecture'
    )
  if not safetensors_file.is_floating(found.dtype):
    raise ValueError(
      f'{name} is stored as {found.dtype}: quantised weights are not read, '
      'take those in float16 or longer'
    )
  return found


def reshaped(found, shape):
  return dataclasses.replace(
    found, shape=tuple(shape), read=lambda: found.read().reshape(shape)
  )


def check_leftovers(found, wanted):
  extra = sorted(set(found) - set(wanted))
  missing = sorted(set(wanted) - set(found))
  if extra or missing:
    raise ValueError(
      f'{len(extra)} tensors have no place in the net: {format_list(extra)}; '
      f'{len(missing)} tensors of the net are not there: '
      f'{format_list(missing)}. The weights are of another architecture than '
      'the config says'
    )


def format_list(entries, limit=8):
  """At most `limit` of the entries, so that an error fits on a screen."""
  more = len(entries) - limit
  text = ', '.join(entries[:limit]) or 'none'
  return f'{text} and {more} more' if more > 0 else text
