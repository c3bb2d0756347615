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
import re

import numpy as np
from flax import traverse_util

STACKS = ('transformer_blocks', 'layers')


@dataclasses.dataclass(frozen=True)
class Slot:
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


def current(name):
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


def slots(flat):
  """{published name: Slot} of all the leaves of a flat tree {path: leaf}."""
  found = {}
  for path, leaf in flat.items():
    depth = stack_depth(path, leaf)
    shape = leaf.shape if depth is None else leaf.shape[1:]
    shape = tuple(shape[axis] for axis in axes(path, len(shape)))
    for index in [None] if depth is None else range(depth):
      found[published(unstack(path, index))] = Slot(path, index, shape)
  return dict(sorted(found.items()))


def tensor(flat, slot):
  """The tensor of a slot in the published layout; of numpy leaves, a view."""
  array = flat[slot.path]
  array = np.asarray(array if slot.index is None else array[slot.index])
  return array.transpose(axes(slot.path, array.ndim))


def keep(path, array):
  del path
  return array


def from_published(found, read, target, place=keep):
  """Published tensors > our tree, one array at a time.

  `found` are the published names, `read(name)` gives a tensor, and `target` is
  our tree of shapes and dtypes, stacked or not; tensors are cast to its dtypes.
  `place(path, array)` says what becomes of each numpy array once it is whole.
  Raises ValueError on names that are left over on either side, before anything
  is read, and on a tensor of another shape.
  """
  flat = traverse_util.flatten_dict(target)
  wanted = slots(flat)
  # A buffer of older transformers: 0..76.
  found = {current(n): n for n in found if not n.endswith('.position_ids')}
  check_leftovers(found, wanted)
  parts = collections.defaultdict(list)
  for name, slot in wanted.items():
    parts[slot.path].append((found[name], slot))
  tree = {}
  for path, leaf in flat.items():
    array = np.empty(leaf.shape, leaf.dtype)
    for name, slot in parts[path]:
      tensor({path: array}, slot)[...] = fit(read(name), slot.shape, name)
    tree[path] = place(path, array)
  return traverse_util.unflatten_dict(tree)


def fit(array, shape, name):
  """The tensor in the shape that a net asks for."""
  # The first autoencoders stored attention as convolutions of size one.
  if array.ndim == 4 and len(shape) == 2 and array.shape[2:] == (1, 1):
    array = array[:, :, 0, 0]
  if array.shape != shape:
    raise ValueError(
      f'{name} has the shape {array.shape}, but the config asks for '
      f'{shape}: the weights are of another architecture'
    )
  return array


def check_leftovers(found, wanted):
  extra = sorted(set(found) - set(wanted))
  missing = sorted(set(wanted) - set(found))
  if extra or missing:
    raise ValueError(
      f'{len(extra)} tensors have no place in the net: {listed(extra)}; '
      f'{len(missing)} tensors of the net are not there: {listed(missing)}. '
      'The weights are of another architecture than the config says'
    )


def listed(entries, limit=8):
  """At most `limit` of the entries, so that an error fits on a screen."""
  more = len(entries) - limit
  text = ', '.join(entries[:limit]) or 'none'
  return f'{text} and {more} more' if more > 0 else text
