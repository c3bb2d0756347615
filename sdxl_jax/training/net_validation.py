"""Checks the fields of a config for the nets, and which of them are trained."""

import re
from collections.abc import Sequence

import numpy as np
from ml_collections import config_dict

from sdxl_jax.training import config_fields, word_validation


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for nets that are not there, or not as a UNet can be."""
  if not config.trained:
    raise ValueError(
      "config.trained is empty: name the nets to train, such as ('unet',)"
    )
  for field in 'trained', 'from_scratch':
    absent = [name for name in config[field] if not has_net(config, name)]
    if absent:
      raise ValueError(
        f'config.{field} has {absent}, which a model of this config lacks: '
        'remove them'
      )
  # Nothing else gives random parameters a meaning.
  random = [n for n in config.from_scratch if n not in config.trained]
  if random:
    raise ValueError(
      f'config.from_scratch has {random}, which config.trained lacks: they '
      'would stay random; add them to trained, or remove them from from_scratch'
    )
  check_vae_dtype(config)
  check_trained_types(config)
  check_levels(config)
  check_depths(config)
  if config.task == 'diffusion':
    check_channels(config)
  check_lora(config)
  word_validation.check(config)


def has_net(config: config_dict.ConfigDict, name: str) -> bool:
  """Whether the model of a config has a net of this name."""
  if name == 'discriminator':
    return config.task == 'autoencoder'
  if name == 'vae':
    return config.vae.kind == 'kl'
  return name == 'lora' or config[name] is not None


def check_vae_dtype(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for an autoencoder whose activations would overflow."""
  if config.vae.get('dtype') == 'float16':
    raise ValueError(
      "config.vae.dtype is 'float16', in which SDXL's autoencoder overflows to "
      "NaN: set it to 'bfloat16' or 'float32'"
    )


def check_trained_types(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for parameters that cannot be trained."""
  for name in config.trained:
    net = config.get(name)
    if net and net.get('weights_dtype'):
      raise ValueError(
        f'config.{name}.weights_dtype is {net.weights_dtype!r}, in which '
        f'kernels are frozen, but config.trained has {name!r}: set it to None, '
        "or train low-rank factors, 'lora', in place of the net"
      )
    if net and net.get('param_dtype') == 'float16':
      raise ValueError(
        f"config.{name}.param_dtype is 'float16', in which Adam's moments and "
        f'eps vanish, but config.trained has {name!r}: set it to '
        "'float32'; its dtype may be 'float16'"
      )


def check_levels(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for levels of the UNet that cannot be built."""
  c = config.unet
  per_level = ['block_out_channels', 'transformer_depth', 'num_heads']
  if c.up_transformer_depth is not None:
    per_level.append('up_transformer_depth')
  lengths = {name: len(c[name]) for name in per_level}
  if len(set(lengths.values())) > 1:
    raise ValueError(
      f'config.unet has another number of levels in each of {lengths}: give '
      'each of them one value per level'
    )
  ups = c.up_transformer_depth or c.transformer_depth
  depths = [[down, up] for down, up in zip(c.transformer_depth, ups)]
  depths[-1].append(c.mid_transformer_depth or 0)  # with the last level's heads
  for width, blocks, heads in zip(c.block_out_channels, depths, c.num_heads):
    parts = {'norm_num_groups': c.norm_num_groups}
    if any(np.any(depth) for depth in blocks):
      parts['num_heads'] = heads
    for name, part in parts.items():
      if width % part:
        raise ValueError(
          f'config.unet.block_out_channels has {width}, which is no multiple '
          f'of {part}, its {name}: change one of them'
        )


def check_depths(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for depths that are not one for each block."""
  blocks = config.unet.layers_per_block
  for name, count in (
    ('transformer_depth', blocks),
    ('up_transformer_depth', blocks + 1),
  ):
    for depth in config.unet[name] or ():
      if isinstance(depth, Sequence) and len(depth) != count:
        raise ValueError(
          f'config.unet.{name} has {tuple(depth)} for a level, which has '
          f'{count} blocks there: give one number, or one for each block'
        )


def check_channels(config: config_dict.ConfigDict) -> None:
  """Raises ValueError where the UNet does not fit what it is given."""
  c, encoders = config.unet, [config.text_encoder, config.text_encoder_2]
  encoders = [encoder for encoder in encoders if encoder is not None]
  pooled = encoders[-1].projection_dim or encoders[-1].hidden_size
  numbers = 5 if config.refiner else 6  # of micro-conditioning
  if config.vae.kind == 'patch':
    latents = config.vae.in_channels * config.vae.patch**2
  else:
    latents = config.vae.latent_channels
  # {field: (value, what it stands for)}
  needed = {
    'context_dim': (
      sum(encoder.hidden_size for encoder in encoders),
      f'the hidden_size of {len(encoders)} text encoders',
    ),
    'vector_dim': (
      pooled + numbers * c.size_embed_dim,
      f'{pooled} of pooled text and {numbers} x size_embed_dim',
    ),
    'in_channels': (latents, 'channels of the latents'),
    'out_channels': (latents, 'channels of the latents'),
  }
  for name, (value, meaning) in needed.items():
    if c[name] != value:
      raise ValueError(
        f'config.unet.{name} is {c[name]}; it must be {value}, {meaning}'
      )


def check_lora(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for groups of low-rank factors that cannot be trained."""
  if bool(config.lora) != ('lora' in config.trained):
    raise ValueError(
      f'config.trained is {tuple(config.trained)} and config.lora has '
      f"{list(config.lora)}: to train low-rank factors, put 'lora' into "
      'trained and a dict(layers=pattern, rank=16, alpha=16.0) into config.lora'
    )
  # Each group; its pattern is compiled here, so that a mistake fails at once.
  for name, group in config.lora.items():
    kinds = config_fields.LORA | config_fields.LORA_KINDS
    if not set(config_fields.LORA) <= set(group) <= set(kinds):
      raise ValueError(
        f'config.lora.{name} has {sorted(group)}; it must have '
        f'{sorted(config_fields.LORA)}, and may have '
        f'{sorted(config_fields.LORA_KINDS)}'
      )
    for field in group:
      if remedy := kinds[field].remedy(group[field]):
        raise ValueError(
          f'config.lora.{name}.{field} is {group[field]!r}; {remedy}'
        )
    check_lora_kind(name, group)
    try:
      re.compile(group.layers)
    except re.error as error:
      raise ValueError(
        f'config.lora.{name}.layers is {group.layers!r}, which is no regular '
        f'expression: {error}'
      ) from None


def check_lora_kind(name: str, group: config_dict.ConfigDict) -> None:
  """Raises ValueError for fields that a kind of factors has no use for."""
  algo = group.get('algo', 'lora')
  if algo == 'full' and group.get('dora_wd'):
    raise ValueError(
      f"config.lora.{name} has dora_wd with algo 'full', whose difference has "
      'norms of its own: leave dora_wd out'
    )
  if algo != 'lokr' and group.get('factor', -1) != -1:
    raise ValueError(
      f'config.lora.{name} has factor={group.factor} with algo {algo!r}; only '
      "'lokr' has one: leave it out"
    )
