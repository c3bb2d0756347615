"""Replaces 'auto' by the types that nets compute in and are stored in."""

from typing import Any

import ml_collections

from sdxl_jax.models import compute_dtype

NETS = ('unet', 'vae', 'text_encoder', 'text_encoder_2')
FIELDS = ('dtype', 'param_dtype')
CHOOSE = {'vae': compute_dtype.choose_vae}  # of the nets that differ


def open_fields(config: ml_collections.ConfigDict) -> list[tuple[str, str]]:
  """Returns (net, field) of each type that is 'auto'."""
  return [
    (name, field)
    for name in NETS
    for field in FIELDS
    if config[name] is not None and config[name].get(field) == 'auto'
  ]


def resolve(
  config: ml_collections.ConfigDict,
  device: Any,
  earlier: dict[str, Any] | None = None,
) -> ml_collections.ConfigDict:
  """Returns the config with a type in place of each 'auto'.

  A net computes in the type that suits the device, see compute_dtype. It is
  stored in the same type if it is frozen, and in float32 if it is trained.

  Args:
    config: see configs/default.py.
    device: jax.Device of the run, or its compute_dtype.Kind.
    earlier: config of the run so far, whose types stay, as a dict.
  """
  fields = open_fields(config)
  if not fields:
    return config
  config = config.copy_and_resolve_references().unlock()
  for name, field in fields:  # dtype comes first
    net, kept = config[name], (earlier or {}).get(name) or {}
    if kept.get(field, 'auto') != 'auto':
      net[field] = kept[field]
    elif field == 'dtype':
      net.dtype = CHOOSE.get(name, compute_dtype.choose)('auto', device)
    else:
      net.param_dtype = 'float32' if name in config.trained else net.dtype
  return config.lock()


def describe(
  before: ml_collections.ConfigDict, after: ml_collections.ConfigDict
) -> list[str]:
  """Returns a line on the types that were 'auto', none if there were none.

  Args:
    before, after: configs, `after` without 'auto'.
  """
  nets = list(dict.fromkeys(name for name, _ in open_fields(before)))
  chosen = [
    f'{name} {after[name].dtype}'
    + (
      f' (parameters {after[name].param_dtype})'
      if after[name].param_dtype != after[name].dtype
      else ''
    )
    for name in nets
  ]
  return [f"types in place of 'auto': {', '.join(chosen)}"] if chosen else []
