"""Compares shapes with those that a layer needs, in which 'r' is the rank."""

Shape = tuple[int, ...]
Needed = tuple[int | str, ...]


def is_fitting(shape: Shape, needed: Needed) -> bool:
  """Checks whether a shape is the one that is needed; 'r' is any number."""
  return len(shape) == len(needed) and all(
    n in ('r', m) for m, n in zip(shape, needed)
  )


def pad(shape: Shape, length: int) -> Shape:
  """Adds axes of size one at the end, or removes them, up to a length."""
  while len(shape) > length and shape[-1] == 1:
    shape = shape[:-1]
  return (*shape, *[1] * (length - len(shape)))


def describe(needed: Needed) -> str:
  """Formats a shape in which the rank is a letter."""
  return f'({", ".join(map(str, needed))}{"," * (len(needed) == 1)})'


def blocks_shape(found: Shape, outputs: int) -> Needed:
  """Returns the shape that blocks of OFT or BOFT need, as they have it."""
  *stages, _, size, _ = found
  # The last stage of a butterfly pairs outputs that are farthest apart.
  group = 2 ** (stages[0] - 1) * size if stages and stages[0] else size
  if not group or outputs % group or (stages and size % 2):
    return ('blocks', 'of', outputs, 'outputs')
  return (*stages, outputs // size, size, size)
