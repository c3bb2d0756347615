"""Compares the tensors of a file with those of a net, and says what differs."""

from collections.abc import Sequence

from sdxl_jax.weights import companions, safetensors_file

Tensors = dict[str, safetensors_file.LazyTensor]


def check(
  stored: Tensors,
  expected: dict[str, tuple[int, ...]],
  skip_unsupported: bool = False,
  prefix: str = '',
) -> None:
  """Checks names that are on one side only, and leaves known companions out.

  Args:
    stored: {name: tensor}.
    expected: {name: shape}.
    skip_unsupported: see companions.check.
    prefix: of the names in the file.

  Raises:
    ValueError: for unknown or missing names, or companions that matter; in one
      line, which names the first of each.
  """
  names = sorted(
    stored[name].name or name for name in set(stored) - set(expected)
  )
  found = companions.classify(names)
  missing = [prefix + name for name in sorted(set(expected) - set(stored))]
  # Quantised tensors have other names and shapes.
  if not found.quantised and (found.unknown or missing):
    raise ValueError(explain(stored, expected, found, missing))
  companions.check(found, skip_unsupported)


def explain(
  stored: Tensors,
  expected: dict[str, tuple[int, ...]],
  found: companions.Classified,
  missing: Sequence[str],
) -> str:
  """Describes names that are on one side only, and why."""
  parts = []
  if found.unknown:
    parts.append(
      f'{companions.count(found.unknown)} without a place in the net: '
      f'{companions.format_list(found.unknown)}'
    )
  if missing:
    parts.append(
      f'{companions.count(missing)} of the net missing: '
      f'{companions.format_list(missing)}'
    )
  if found.matters:
    parts.append(f'and adapters: {companions.describe(found.matters)}')
  text = '; '.join(parts)
  # Only shapes show that a file is of another net.
  for name in sorted(set(stored) & set(expected)):
    shape = stored[name].shape
    if not is_fitting(shape, expected[name]):
      return (
        f'{text}; and {stored[name].name or name} has the shape {shape}, but '
        f'the config requires {expected[name]}: the weights are of another '
        'architecture than the config'
      )
  if not missing:
    return (
      f'{text}. They are in no known spelling, and whether they change the '
      'image is not known: use a file without them'
    )
  if not found.unknown:
    return (
      f'{text}. The weights are incomplete: download them again, or take this '
      'net from other weights with python -m sdxl_jax.convert --base'
    )
  return (
    f'{text}. Either these names are in a spelling that is not known, or the '
    'net has other layers than its config'
  )


def is_fitting(stored: tuple[int, ...], shape: tuple[int, ...]) -> bool:
  """Checks whether a shape is that of a net, or of the same convolution."""
  # Attention of autoencoders was stored as convolutions of size one, in one
  # dimension or two; and convolutions of size one are stored as matrices.
  if len(stored) < 2 or len(shape) < 2:
    return stored == shape
  same = stored[:2] == shape[:2]
  return stored == shape or (same and {*stored[2:], *shape[2:]} == {1})
