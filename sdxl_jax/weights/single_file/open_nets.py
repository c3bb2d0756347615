"""Opens a net of a single file, in the names of either library."""

import dataclasses
import functools
from typing import Any

from sdxl_jax.weights import (
  infer_config,
  leftovers,
  nearest_config,
  net_shapes,
  pretrained,
  safetensors_file,
)
from sdxl_jax.weights.diffusers import spellings, tensor_names
from sdxl_jax.weights.single_file import find_nets, ldm_names, ldm_spellings

Tensors = dict[str, safetensors_file.LazyTensor]
Shapes = dict[str, tuple[int, ...]]


def open_net(
  found: find_nets.FoundNet,
  known_config: dict[str, Any] | None,
  location: str,
  skip_unsupported: bool = False,
) -> pretrained.Net:
  """Opens a net and reads no tensor data.

  Args:
    found: its tensors.
    known_config: its config.json, or that of a net which it replaces.
    location: for errors.
    skip_unsupported: see companions.check.

  Raises:
    ValueError: if no net of SDXL has such shapes.
  """
  is_original = found.naming is find_nets.Naming.ORIGINAL
  try:
    unify = ldm_spellings.unify if is_original else spellings.unify
    part = unify(found.tensors)
  except ValueError as error:
    raise ValueError(f'{location}: {error}') from None
  # Shapes and names that a config leads to, in the names of the file.
  style = found.component
  if is_original and style == 'text_encoder':  # in open_clip's names
    style = 'text_encoder_2'
  if is_original:
    expect = functools.partial(original_shapes, location, style)
    layout = ldm_names.infer_block_layout(part)
    shape = functools.partial(original_shape, part, style, layout)
  else:
    expect = functools.partial(diffusers_shapes, location)
    shape = functools.partial(stored_shape, part)
  infer = functools.partial(
    infer_config.infer_config_json, found.component, shape
  )
  config = nearest_config.choose(
    found.component, part, expect, infer, known_config, location
  )
  net = pretrained.Net(found.component, config, location, None)
  expected = expect(net.config())
  if is_original:
    read = functools.partial(
      read_original, part, net, style, expected, found.prefix, skip_unsupported
    )
  else:
    read = functools.partial(dict, part)
  return dataclasses.replace(
    net,
    read=read,
    skip_unsupported=skip_unsupported,
    left_out=tuple(t.name or n for n, t in part.items() if n not in expected),
  )


def stored_shape(part: Tensors, name: str) -> tuple[int, ...] | None:
  """Returns the shape of a tensor in diffusers' names, or None."""
  return part[name].shape if name in part else None


def original_shape(
  part: Tensors, style: str, layout: ldm_names.BlockLayout, name: str
) -> tuple[int, ...] | None:
  """Returns the shape that a tensor of the original names has in diffusers'."""
  key, transform = ldm_names.original(style, name, layout)
  return transform.to_diffusers(part[key]).shape if key in part else None


def diffusers_shapes(location: str, config: pretrained.NetConfig) -> Shapes:
  """Returns {name: shape} of the net of a config."""
  shapes = net_shapes.shapes_of(config, location)
  places = tensor_names.locations(tensor_names.flat(shapes))
  return {name: place.shape for name, place in places.items()}


def original_shapes(
  location: str, style: str, config: pretrained.NetConfig
) -> Shapes:
  """Returns {original name without prefix: shape} of the net of a config."""
  shapes = diffusers_shapes(location, config)
  layout = ldm_names.block_layout(config)
  return {
    key: ldm_names.to_original(
      [
        (safetensors_file.LazyTensor(shapes[name], None, None), transform)
        for name, transform in names
      ]
    ).shape
    for key, names in ldm_names.table(style, shapes, layout).items()
  }


def read_original(
  part: Tensors,
  net: pretrained.Net,
  style: str,
  expected: Shapes,
  prefix: str,
  skip_unsupported: bool,
) -> Tensors:
  """Opens {diffusers name: tensor} of a net with the original names.

  Args:
    part: {original name without prefix: tensor}.
    net: with its config.
    style: component in whose original names it is.
    expected: {original name: shape}.
    prefix: of the names in the file.
    skip_unsupported: see companions.check.

  Raises:
    ValueError: if names are left over on either side, or a shape differs.
  """
  stored = part
  if net.name == 'text_encoder':  # see pretrained.without_unused
    stored = {n: t for n, t in part.items() if n != spellings.BARE_PROJECTION}
  leftovers.check(stored, expected, skip_unsupported, prefix)
  table = original_table(net, style)
  # A part of a fused tensor could fit where the whole does not.
  fitted = {
    key: tensor_names.fit(part[key], shape, key)
    for key, shape in expected.items()
  }
  return {
    name: transform.to_diffusers(fitted[key])
    for key, names in table.items()
    for name, transform in names
  }


def original_table(
  net: pretrained.Net, style: str | None = None
) -> dict[str, list[tuple[str, ldm_names.Transform]]]:
  """Returns {original name: [(diffusers name, transform)]} of a net.

  Args:
    net: with its config.
    style: component in whose original names it is; None: its own.
  """
  config = net.config()
  names = diffusers_shapes(net.location, config)
  layout = ldm_names.block_layout(config)
  return ldm_names.table(style or net.name, names, layout)
