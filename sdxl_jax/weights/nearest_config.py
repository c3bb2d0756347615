"""Chooses the config of a net that was published without one.

Shapes determine it, as long as the file is in order. Where one tensor is
missing or has another shape, the config that follows from the rest would be of
a net that nobody published, and an error would blame the wrong tensors: there
the published net is taken that has almost all of the tensors.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from sdxl_jax.models import clip, tiny_vae, unet, vae
from sdxl_jax.weights import companions, leftovers, pretrained
from sdxl_jax.weights.diffusers import config_json

PUBLISHED = {
  'unet': (unet.BASE, unet.REFINER, *unet.PRUNED),
  'vae': (vae.VAEConfig(),),
  'text_encoder': (clip.VIT_L,),
  'text_encoder_2': (clip.VIT_BIGG,),
}
# Fields in which nets differ from the published ones, by one tensor each, with
# the values that they may have.
VARIANTS = {
  'in_channels': (4, 8, 9),  # 8: an image to edit; 9: a mask and its image
  'guidance_embed_dim': range(1, 4096),
  'vocab_size': range(49408, 2**20),  # tokens are added at the end
  'max_position_embeddings': range(77, 2**16),
}
NEAR = 0.95  # share of tensors by which a net is recognised
# Blocks of a config that is built to compare it: no net has more.
MOST_BLOCKS = 256
Shapes = dict[str, tuple[int, ...]]


def choose(
  component: str,
  part: dict[str, Any],
  expect: Callable[[pretrained.NetConfig], Shapes],
  infer: Callable[[dict[str, Any] | None, str], dict[str, Any]],
  known: dict[str, Any] | None,
  location: str,
) -> dict[str, Any]:
  """Returns the config.json of a net.

  Args:
    component: its name.
    part: {name: tensor} of its file.
    expect: returns {name: shape} of the net of a config.
    infer: see infer_config.infer_config_json.
    known: the config.json of the file's metadata or of a base.
    location: of the net, for errors.

  Raises:
    ValueError: if no net of SDXL has such shapes.
  """
  if known is not None:
    config = config_json.read(component, known, location)
    if agreement(part, expect, config) >= NEAR:
      return known
    return infer(known, location)  # which says where they differ
  try:
    inferred = infer(None, location)
    config = config_json.read(component, inferred, location)
    if any(is_variant(config, other) for other in PUBLISHED[component]):
      return inferred
    error = None
  except ValueError as reason:
    inferred, error = None, reason
  # Nothing published: of another net, or of one with some wrong tensors?
  for other in PUBLISHED[component]:
    if agreement(part, expect, other) >= NEAR:
      return config_json.write(component, other)
  if error is not None:
    raise error
  return inferred


def agreement(
  part: dict[str, Any],
  expect: Callable[[pretrained.NetConfig], Shapes],
  config: pretrained.NetConfig,
) -> float:
  """Computes the share of tensors that a file and a net have in common."""
  try:
    if count_blocks(config) > MOST_BLOCKS:
      return 0.0
    expected = expect(config)
  except (ValueError, TypeError, IndexError):  # no net can be built from it
    return 0.0
  alike = [
    name
    for name, shape in expected.items()
    if name in part and leftovers.is_fitting(part[name].shape, shape)
  ]
  surplus = companions.classify(n for n in part if n not in expected).unknown
  return len(alike) / max(len(expected) + len(surplus), 1)


def count_blocks(config: pretrained.NetConfig) -> int:
  """Counts the blocks of a net, before it is built."""
  if isinstance(config, clip.CLIPTextConfig):
    return config.num_hidden_layers
  if isinstance(config, tiny_vae.TinyConfig):
    return sum(config.encoder_blocks) + sum(config.decoder_blocks)
  if isinstance(config, vae.VAEConfig):
    return len(config.block_out_channels) * config.layers_per_block
  levels = range(len(config.block_out_channels))
  layers = [config.layers(level) for level in levels]
  if sum(layers) > MOST_BLOCKS:
    return sum(layers)
  depths = [sum(config.depths(i, up)) for i in levels for up in (False, True)]
  return sum(layers) + sum(depths) + (config.mid_transformer_depth or 0)


def is_variant(
  config: pretrained.NetConfig, other: pretrained.NetConfig
) -> bool:
  """Checks whether a config is a published one, but for VARIANTS' fields."""
  fields = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if getattr(config, field.name) != getattr(other, field.name)
  }
  return all(
    name in VARIANTS and value in VARIANTS[name]
    for name, value in fields.items()
  )
