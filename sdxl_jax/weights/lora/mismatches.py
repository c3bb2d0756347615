"""Explains by names and shapes why a LoRA file does not fit a base model."""

import difflib
import itertools
import re
from collections.abc import Collection
from typing import Any

from sdxl_jax.weights import companions
from sdxl_jax.weights.lora import layer_parts, lora_names

# The beginnings of names of a whole net in other dialects.
NET = r'^(lora_unet_|lora_transformer_|lycoris_|diffusion_model\.|transformer\.'
NET += r'|unet\.|base_model\.model\.)*'
# Architectures by names that only they have. Stable Diffusion 1 and 2 have
# attention in the first block; SDXL has not.
ARCHITECTURES = {
  r'(down_blocks[._]0|up_blocks[._]3)[._]attentions'
  r'|input_blocks[._][12][._]1[._]|output_blocks[._](9|10|11)[._]1[._]': (
    'Stable Diffusion 1.x or 2.x'
  ),
  r'(double|single)_blocks|single_transformer_blocks': 'Flux or HunyuanVideo',
  r'joint_blocks|[._]attn[._]add_[qkv]_proj': 'Stable Diffusion 3 or Flux',
  r'^lora_prior|prior_unet': 'Stable Cascade or Kandinsky',
  r'lora_te3_|text_encoder_3|t5xxl': (
    'Stable Diffusion 3 or Flux, which have a T5 as text encoder'
  ),
  r'^\d+\.to_\w+_(lora|ip)\.|^(ip_adapter|image_proj)\.': 'an IP-Adapter',
  r'motion_modules': 'AnimateDiff, a motion module',
  r'lora_controlnet|control_model|controlnet_|input_hint_block': 'a ControlNet',
  r'context_refiner|noise_refiner|cap_embedder': 'Lumina or Z-Image',
  rf'{NET}blocks[._]\d+[._](self_attn|cross_attn)[._]': 'Wan',
  rf'{NET}(transformer_blocks|blocks|layers)[._]\d+[._]|^transformer\.'
  '|^lora_transformer_': 'a diffusion transformer',
}
# What the text encoders of some models give to cross-attention.
CONTEXTS = {
  768: 'Stable Diffusion 1.x',
  1024: 'Stable Diffusion 2.x',
  1280: 'the refiner of SDXL',
  2048: 'SDXL',
}
CONTEXT_LAYER = re.compile(r'attn2[._]to_[kv]\.')


def architecture_of(names: Collection[str]) -> str | None:
  """Returns the architecture that some names show, or None."""
  for pattern, architecture in ARCHITECTURES.items():
    if any(re.search(pattern, name) for name in names):
      return architecture
  return None


def context_of(tensors: dict[str, Any]) -> tuple[str, int] | None:
  """Returns (tensor, size) of the first input of cross-attention in a file."""
  for name, tensor in tensors.items():
    parsed = lora_names.parse(name)
    is_down = parsed is not None and parsed.part == 'down'
    if is_down and CONTEXT_LAYER.search(name) and len(tensor.shape) > 1:
      return name, tensor.shape[1]
  return None


def explain_unknown(
  unknown: Collection[str],
  tensors: dict[str, Any],
  metadata: dict[str, str],
  layers: layer_parts.Layers,
) -> str:
  """Explains why names are of no layer, and says what to do.

  Args:
    unknown: names that are of no layer.
    tensors: {name: tensor} of the file.
    metadata: of the file.
    layers: of the base model.
  """
  base = metadata.get('ss_base_model_version', '')
  noted = f': {base}' if base else ''
  reason = explain_context(tensors, layers)
  architecture = architecture_of(unknown)
  if architecture:
    return (
      f'Such names are of {architecture}{reason}: the file is for another '
      f'one{noted}'
    )
  if any(re.fullmatch(companions.LEARNED_WORD, name) for name in unknown):
    return 'The file is a textual inversion, no LoRA: pass it as --embedding'
  if not any(map(lora_names.parse, tensors)):
    return (
      'The file has no tensor of a LoRA, such as lora_down.weight: pass a '
      'model as --weights, an autoencoder as --vae, words of textual inversion '
      'as --embedding'
    )
  missing = missing_net(unknown, layers)
  if missing:
    return f'The base model has no {missing}, which the file is for{noted}'
  if reason:
    return f'The file is for another one{reason}{noted}'
  return (
    f'{nearest(next(iter(unknown)), layers)}. If these tensors are of no '
    'importance, go on without them by --skip_unsupported'
  )


def explain_context(tensors: dict[str, Any], layers: layer_parts.Layers) -> str:
  """Describes an input of cross-attention that is not the base model's."""
  needed = {
    layer.weight[1]
    for (net, name), layer in layers.items()
    if net == 'unet' and name.endswith('attn2.to_k')
  }
  context = context_of(tensors)
  if not context or not needed or context[1] in needed:
    return ''
  name, size = context
  whose = f', as in {CONTEXTS[size]}' if size in CONTEXTS else ''
  return (
    f' ({name} takes {size} numbers{whose}, and the base model has '
    f'{min(needed)})'
  )


def missing_net(unknown: Collection[str], layers: layer_parts.Layers) -> str:
  """Returns the net of the first name if the base model lacks it, or ''."""
  nets, first = {net for net, _ in layers}, next(iter(unknown))
  for net, heads in lora_names.HEADS.items():
    if net not in nets and any(first.startswith(head) for head in heads):
      return net
  return ''


def nearest(name: str, layers: layer_parts.Layers) -> str:
  """Describes how a name differs from the nearest one that is known."""
  parsed = lora_names.parse(name)
  prefix = parsed.prefix if parsed else name
  by_net = lora_names.names_by_net(layers)
  known = lora_names.key_prefixes(by_net, [prefix])
  stems = itertools.accumulate(name.split('.'), '{}.{}'.format)
  for stem in stems:
    if stem in known and not parsed:
      return f'There is the layer {stem}, and no part {name[len(stem) + 1 :]!r}'
  # Names with the longest beginning that is known are in the same spelling.
  heads = {h for net in by_net for h in lora_names.all_heads(net, by_net)}
  head = max((h for h in heads if prefix.startswith(h)), key=len)
  candidates = [k for k in known if starts(k, head)]
  (found,) = difflib.get_close_matches(prefix, candidates, n=1, cutoff=0)
  return f'The nearest layer is {found}'


def starts(name: str, head: str) -> bool:
  """Checks whether a name has a beginning; '': one of diffusers' names."""
  return name.startswith(head or ('down_', 'up_', 'mid_', 'text_model.'))


def explain_misfit(
  shapes: dict[str, tuple[int, ...]],
  prefix: str,
  names: dict[str, str],
  misfits: dict[tuple[str, str], layer_parts.Misfit],
  weights: dict[tuple[str, str], tuple[int, ...]],
) -> str:
  """Describes the shapes of a layer's tensors, and the one that is needed.

  Args:
    shapes: {part: shape}.
    prefix: of the names.
    names: {part: name}.
    misfits: {(net, layer): what does not fit} of the layers of that name.
    weights: {(net, layer): shape} of them.
  """
  key, misfit = min(misfits.items())
  ends = {part: name.removeprefix(f'{prefix}.') for part, name in names.items()}
  given = ' and '.join(
    f'{ends[part]} {shapes[part]}' for part in sort_parts(names)
  )
  reason = 'it is for another base model'
  if misfit.is_broken:
    reason = 'write the file again with the tool it is from'
  found = shapes[misfit.part]
  if key[1].endswith(('attn2.to_k', 'attn2.to_v')) and misfit.part == 'down':
    model = CONTEXTS.get(found[1] if len(found) > 1 else 0)
    reason += f', {model}' if model else ''
  expected = ' or '.join(str(shape) for _, shape in sorted(weights.items()))
  kind = layer_parts.method_of(shapes) or 'a difference of a bias'
  return (
    f'{prefix} is {kind} with {given}, and the layer is {expected}: '
    f'{ends[misfit.part]} would have to be {misfit.needed}; {reason}'
  )


def sort_parts(names: Collection[str]) -> list[str]:
  """Sorts parts of a layer but alpha: down before up."""
  order = [*dict.fromkeys(lora_names.PUBLISHED_PARTS.values()), 'up_bias']
  return [part for part in order if part in names and part != 'alpha']
