"""Maps layers of a base model to their names in LoRA files, by rule.

  kohya            lora_unet_input_blocks_4_1_proj_in.lora_down.weight
  kohya_diffusers  lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight
  diffusers        unet.down_blocks.1.attentions.0.proj_in.lora_A.weight
  diffusers_old    unet. ... .proj_in.lora.down.weight
                   text_encoder. ... .lora_linear_layer.down.weight
  peft             base_model.model.down_blocks.1. ... .lora_A.weight

kohya has the original (LDM) names of the UNet's layers. All name the layers of
the text encoders as transformers does, after lora_te1, lora_te2, text_encoder.
These are written; read are further beginnings (HEADS) before published or
original names, those of ComfyUI, OMI and LyCORIS among them.
"""

import collections
import re
from collections.abc import Collection
from typing import NamedTuple

from sdxl_jax.weights.diffusers import spellings as published
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
# What else a layer may have, by the ends of the names: of LoRA with a core or a
# magnitude (DoRA), of LoHa, LoKr, GLoRA, OFT, and of whole differences.
PUBLISHED_PARTS = {end: part for part, ends in PARTS.items() for end in ends}
PUBLISHED_PARTS |= {
  'alpha': 'alpha',
  'lora_alpha': 'alpha',
  'lora.alpha': 'alpha',
  'lora_mid': 'mid',
  'dora_scale': 'magnitude',
  'lora_magnitude_vector': 'magnitude_out',
  'diff': 'diff',
  'diff_b': 'diff_b',
  'w_norm': 'diff',
  'b_norm': 'diff_b',
  'oft_blocks': 'oft_blocks',
  'rescale': 'rescale',
}
HADAMARD = tuple(f'hada_{x}' for x in ('w1_a', 'w1_b', 'w2_a', 'w2_b'))
KRONECKER = tuple(
  f'lokr_{x}' for x in ('w1', 'w1_a', 'w1_b', 'w2', 'w2_a', 'w2_b', 't2')
)
GENERALIZED = ('a1', 'a2', 'b1', 'b2')  # of GLoRA, always with .weight
PUBLISHED_PARTS |= {
  part: part
  for part in (*HADAMARD, 'hada_t1', 'hada_t2', *KRONECKER, *GENERALIZED)
}
# A name is PREFIX.PART, PREFIX.PART.weight or, of PEFT before it is saved for
# one adapter alone, PREFIX.PART.ADAPTER.weight.
NAME = re.compile(
  r'(?P<prefix>.+?)\.(?P<part>'
  + '|'.join(map(re.escape, sorted(PUBLISHED_PARTS, key=len, reverse=True)))
  + r')(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?'
)
# Parts whose names may have an adapter, those that PEFT writes.
PEFT_PARTS = re.compile('lora_[AB]$|lora_magnitude_vector$|hada_|lokr_')
PEFT = 'base_model.model.'
# The beginnings of the names of each net: of kohya and LyCORIS, of diffusers,
# ComfyUI, OMI, and of single files.
HEADS = {
  'unet': (
    'lora_unet_',
    'lycoris_unet_',
    'unet.',
    'diffusion_model.',
    'model.diffusion_model.',
  ),
  'text_encoder': (
    'lora_te1_',
    'lycoris_te1_',
    'text_encoder.',
    'text_encoder_1.',
    'clip_l.',
    'clip_l.transformer.',
    'text_encoders.clip_l.',
    'text_encoders.clip_l.transformer.',
    'conditioner.embedders.0.transformer.',
  ),
  'text_encoder_2': (
    'lora_te2_',
    'lycoris_te2_',
    'text_encoder_2.',
    'clip_g.',
    'clip_g.transformer.',
    'text_encoders.clip_g.',
    'text_encoders.clip_g.transformer.',
  ),
}
ANY_NET = ('', 'lycoris_')  # of names that do not have their net
ONE_TEXT_ENCODER = 'lora_te_'  # of kohya, for models that have one


def names_by_net(layers: Collection[tuple[str, str]]) -> dict[str, list[str]]:
  """Groups (net, layer) by net."""
  names = collections.defaultdict(list)
  for net, name in layers:
    names[net].append(name)
  return names


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
    return f'{PEFT}{layer}'
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


class Name(NamedTuple):
  """The name of a tensor in a LoRA file, taken apart."""

  prefix: str  # of all tensors of its layer
  part: str  # one of the values of PUBLISHED_PARTS, or 'up_bias'
  adapter: str | None = None  # of PEFT


def parse(name: str) -> Name | None:
  """Takes a name apart; None: it is not of a part that is read."""
  # The oldest spellings: attn1.processor.to_q_lora.down.weight, and in text
  # encoders self_attn.to_q_lora.down.weight.
  today = published.unwrap(name)
  today = re.sub(r'(self_attn)\.to_([qkv])_lora\.', r'\1.\2_proj.lora.', today)
  today = today.replace('self_attn.to_out_lora.', 'self_attn.out_proj.lora.')
  today = re.sub(r'(\.processor)?\.(to_[qkv])_lora\.', r'.\2.lora.', today)
  today = re.sub(r'(\.processor)?\.to_out_lora\.', '.to_out.0.lora.', today)
  match = NAME.fullmatch(today)
  if not match:
    return None
  end, adapter = match['part'], match['adapter']
  if adapter and not PEFT_PARTS.match(end):
    return None
  part = PUBLISHED_PARTS[end]
  if end in GENERALIZED and match['leaf'] != 'weight':
    return None
  if match['leaf'] == 'bias':
    part = 'up_bias' if part == 'up' else None
  return Name(match['prefix'], part, adapter) if part else None


def key_prefixes(
  layers: dict[str, Collection[str]], tensors: Collection[str] | None = None
) -> dict[str, set[tuple[str, str]]]:
  """Returns {prefix: {(net, layer)}} in all spellings.

  Nets share prefixes where the names do not have their net.

  Args:
    layers: {net: published names of its layers}.
    tensors: names of tensors; spellings whose beginning none of them has are
      left out. None: all spellings.
  """
  by_prefix = collections.defaultdict(set)
  if tensors is not None:
    tensors = {published.unwrap(name) for name in tensors}
  for net, of_net in layers.items():
    heads = all_heads(net, layers)
    if tensors is not None:
      heads = [h for h in heads if any(t.startswith(h) for t in tensors)]
    layout = unet_block_layout(of_net)
    for layer in of_net:
      for spelling in spellings(net, layer, layout):
        for head in heads:
          by_prefix[head + spelling].add((net, layer))
  return by_prefix


def all_heads(net: str, nets: Collection[str]) -> list[str]:
  """Returns all beginnings of names of a net, among the nets of a model."""
  heads = [*HEADS[net], *ANY_NET]
  first = 'text_encoder' if 'text_encoder' in nets else 'text_encoder_2'
  if net == first:
    heads.append(ONE_TEXT_ENCODER)
  dotted = [head for head in heads if not head.endswith('_')]
  wrapped = [f'{PEFT}{head}' for head in dotted]
  return heads + wrapped + [f'{head}{PEFT}' for head in dotted if head]


def spellings(
  net: str, layer: str, layout: ldm_names.BlockLayout
) -> Collection[str]:
  """Returns a layer's names: published or original, with dots or without."""
  names = {layer}
  if net == 'unet':
    names.add(original_layer(layer, layout))
  else:  # transformers 5 drops this part of a name
    names.add(layer.removeprefix('text_model.'))
  return names | {name.replace('.', '_') for name in names}


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
  if any_matches(r'lycoris_|.*\.lora_down\.'):
    return 'kohya'
  is_old = any_matches(r'.*\.(lora|lora_linear_layer|to_\w+_lora)\.down')
  return 'diffusers_old' if is_old else 'diffusers'
