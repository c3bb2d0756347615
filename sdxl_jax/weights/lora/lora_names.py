"""Maps layers of a base model to their names in LoRA files, by rule.

  kohya            lora_unet_input_blocks_4_1_proj_in.lora_down.weight
  kohya_diffusers  lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight
  diffusers        unet.down_blocks.1.attentions.0.proj_in.lora_A.weight
  diffusers_old    unet. ... .proj_in.lora.down.weight
                   text_encoder. ... .lora_linear_layer.down.weight
  peft             base_model.model.down_blocks.1. ... .lora_A.weight

kohya has the original (LDM) names of the UNet's layers. All name the layers of
the text encoders as transformers does, after lora_te1, lora_te2, text_encoder.
"""

import collections
import re
from collections.abc import Collection

from sdxl_jax.weights.single_file import ldm_names

KEY_FORMATS = ('kohya', 'kohya_diffusers', 'diffusers', 'diffusers_old', 'peft')
PREFIXES = {
  'unet': 'lora_unet',
  'text_encoder': 'lora_te1',
  'text_encoder_2': 'lora_te2',
}
# The factors of a layer, by the ends of their names: of kohya, of diffusers
# and PEFT, of older diffusers in the UNet and in text encoders.
PARTS = {
  'down': ('lora_down', 'lora_A', 'lora.down', 'lora_linear_layer.down'),
  'up': ('lora_up', 'lora_B', 'lora.up', 'lora_linear_layer.up'),
}
SUFFIXES = {
  f'.{end}.weight': part for part, ends in PARTS.items() for end in ends
}
SUFFIXES['.alpha'] = 'alpha'


def unet_block_layout(layers: Collection[str]) -> ldm_names.BlockLayout:
  """Infers the block layout of the UNet that has these published layers."""
  downs = (re.match(r'down_blocks\.(\d+)\..*\.conv1$', x) for x in layers)
  counts = collections.Counter(int(down[1]) for down in downs if down)
  ups = (re.match(r'up_blocks\.(\d+)\.attentions\.(\d+)\.', x) for x in layers)
  ups = {(int(up[1]), int(up[2])) for up in ups if up}
  depths = [counts[level] for level in range(len(counts))]
  # Levels of the way up count from the last one, and have one block more.
  attention = [
    (len(depths) - 1 - level, depth) in ups
    for level, depth in enumerate(depths)
  ]
  return ldm_names.BlockLayout(tuple(depths), tuple(attention))


def original_layer(layer: str, layout: ldm_names.BlockLayout) -> str:
  """Translates a published layer of the UNet to its original name."""
  name, _ = ldm_names.original('unet', f'{layer}.weight', layout)
  # The layer of the guidance embedding has no original name.
  return name.removesuffix('.weight') if name else layer


def key_prefix(
  key_format: str, net: str, layer: str, layout: ldm_names.BlockLayout
) -> str:
  """Returns the beginning of the names of a layer's tensors."""
  if key_format == 'peft':
    return f'base_model.model.{layer}'
  if key_format.startswith('diffusers'):
    return f'{net}.{layer}'
  if key_format == 'kohya' and net == 'unet':
    layer = original_layer(layer, layout)
  return f'{PREFIXES[net]}_{layer.replace(".", "_")}'


def key_suffix(key_format: str, net: str, part: str) -> str:
  """Returns the end of the name of a layer's 'down' or 'up'."""
  kohya, today, old_unet, old_text = PARTS[part]
  if key_format.startswith('kohya'):
    return f'.{kohya}.weight'
  if key_format == 'diffusers_old':
    # For text encoders too: of a file with old and new names diffusers drops
    # one kind.
    return f'.{old_unet if net == "unet" else old_text}.weight'
  return f'.{today}.weight'


def split(name: str) -> tuple[str, str] | None:
  """Splits a name into (prefix, 'down', 'up' or 'alpha'), or returns None."""
  # The oldest spelling: attn1.processor.to_q_lora.down.weight.
  name = re.sub(r'\.processor\.(to_\w)_lora\.', r'.\1.lora.', name)
  name = name.replace('.processor.to_out_lora.', '.to_out.0.lora.')
  for end, part in SUFFIXES.items():
    if name.endswith(end):
      return name.removesuffix(end), part
  return None


def key_prefixes(
  layers: dict[str, Collection[str]],
) -> dict[str, set[tuple[str, str]]]:
  """Returns {prefix: {(net, layer)}} in all key formats.

  The two text encoders share prefixes in 'peft'.

  Args:
    layers: {net: published names of its layers}.
  """
  by_prefix = collections.defaultdict(set)
  for net, names in layers.items():
    layout = unet_block_layout(names)
    for layer in names:
      prefixes = {key_prefix(k, net, layer, layout) for k in KEY_FORMATS}
      prefixes.add(f'{net}.base_model.model.{layer}')
      for prefix in prefixes:
        by_prefix[prefix].add((net, layer))
        # transformers 5 drops this part of a name.
        by_prefix[prefix.replace('.text_model.', '.')].add((net, layer))
  return by_prefix


def detect_key_format(names: Collection[str]) -> str:
  """Detects the key format of a file by the names of its tensors."""

  def any_matches(pattern):
    return any(re.match(pattern, name) for name in names)

  if any_matches('lora_'):
    # Layers that only diffusers' naming has.
    diffusers_layer = 'lora_unet_(down|mid|up|conv|time_embedding|add)_'
    return 'kohya_diffusers' if any_matches(diffusers_layer) else 'kohya'
  if any_matches(r'(\w+\.)?base_model\.'):
    return 'peft'
  is_old = any_matches(r'.*\.(lora|lora_linear_layer|to_\w+_lora)\.down')
  return 'diffusers_old' if is_old else 'diffusers'
