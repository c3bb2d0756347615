"""What LoRA files call the layers of a base model, by rule and not by table.

  kohya            lora_unet_input_blocks_4_1_proj_in.lora_down.weight
  kohya_diffusers  lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight
  diffusers        unet.down_blocks.1.attentions.0.proj_in.lora_A.weight
  diffusers_old    unet. ... .proj_in.lora.down.weight
                   text_encoder. ... .lora_linear_layer.down.weight
  peft             base_model.model.down_blocks.1. ... .lora_A.weight

kohya's names the UNet's layers as the original repository does. All have CLIP's
towers as transformers has them: lora_te1, lora_te2, text_encoder, ...
"""

import collections
import re

from sdxl_jax.weights.single_file import ldm_names

KEY_FORMATS = ('kohya', 'kohya_diffusers', 'diffusers', 'diffusers_old', 'peft')
PREFIXES = {
  'unet': 'lora_unet',
  'text_encoder': 'lora_te1',
  'text_encoder_2': 'lora_te2',
}
# The parts of a layer, by the ends of their names.
PARTS = {
  'down': ('lora_down', 'lora_A', 'lora.down', 'lora_linear_layer.down'),
  'up': ('lora_up', 'lora_B', 'lora.up', 'lora_linear_layer.up'),
}
SUFFIXES = {
  f'.{end}.weight': part for part, ends in PARTS.items() for end in ends
}
SUFFIXES['.alpha'] = 'alpha'


def unet_block_layout(layers):
  """The original.Layout of the UNet with these published layers."""
  depth = sum(bool(re.match(r'down_blocks\.0\..*\.conv1$', x)) for x in layers)
  ups = [re.match(r'up_blocks\.(\d+)\.(attentions)?', x) for x in layers]
  ups = {(int(up[1]), bool(up[2])) for up in ups if up}
  levels = sorted({level for level, _ in ups}, reverse=True)
  return ldm_names.BlockLayout(depth, tuple((i, True) in ups for i in levels))


def original_of(layer, layout):
  """A published layer of the UNet > its name in the original repository."""
  name, _ = ldm_names.original('unet', f'{layer}.weight', layout)
  # A net that is told the guidance scale has one layer more than that knew.
  return name.removesuffix('.weight') if name else layer


def key_prefix(dialect, net, layer, layout):
  """What a layer's tensors are called, but for their ends."""
  if dialect == 'peft':
    return f'base_model.model.{layer}'
  if dialect.startswith('diffusers'):
    return f'{net}.{layer}'
  if dialect == 'kohya' and net == 'unet':
    layer = original_of(layer, layout)
  return f'{PREFIXES[net]}_{layer.replace(".", "_")}'


def key_suffix(dialect, net, part):
  """The end of the names of a net's 'down' or 'up'."""
  kohya, today, old_unet, old_text = PARTS[part]
  if dialect.startswith('kohya'):
    return f'.{kohya}.weight'
  if dialect == 'diffusers_old':
    # Throughout: of a file with names of both kinds, diffusers drops one.
    return f'.{old_unet if net == "unet" else old_text}.weight'
  return f'.{today}.weight'


def split(name):
  """A tensor's name > (stem, 'down', 'up' or 'alpha'), or None."""
  # The oldest spelling: attn1.processor.to_q_lora.down.weight.
  name = re.sub(r'\.processor\.(to_\w)_lora\.', r'.\1.lora.', name)
  name = name.replace('.processor.to_out_lora.', '.to_out.0.lora.')
  for end, part in SUFFIXES.items():
    if name.endswith(end):
      return name.removesuffix(end), part
  return None


def key_prefixes(layers):
  """{stem: {(net, layer)}} in all dialects; two towers may share one.

  Args:
    layers: {net: published names of its layers}.
  """
  found = collections.defaultdict(set)
  for net, names in layers.items():
    layout = unet_block_layout(names)
    for layer in names:
      every = {
        key_prefix(dialect, net, layer, layout) for dialect in KEY_FORMATS
      }
      every.add(f'{net}.base_model.model.{layer}')
      for s in every:
        found[s].add((net, layer))
        # transformers 5 drops this prefix.
        found[s.replace('.text_model.', '.')].add((net, layer))
  return found


def key_format_of(names):
  """The dialect of a file, by the names of its tensors."""
  has = lambda pattern: any(re.match(pattern, name) for name in names)
  if has('lora_'):
    ours = 'lora_unet_(down|mid|up|conv|time_embedding|add)_'
    return 'kohya_diffusers' if has(ours) else 'kohya'
  if has(r'(\w+\.)?base_model\.'):
    return 'peft'
  old = has(r'.*\.(lora|lora_linear_layer|to_\w+_lora)\.down')
  return 'diffusers_old' if old else 'diffusers'
