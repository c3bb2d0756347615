"""Recognises files of other models, by names that SDXL does not have."""

import re
from collections.abc import Collection

from sdxl_jax.weights import companions
from sdxl_jax.weights.single_file import find_nets

# Parts of names of every net of SDXL, and of none that steers a UNet.
NETS = r'(?:^|\.)(?:up_blocks|output_blocks|text_model|resblocks|decoder)\.'
FIRST_LAYERS = r'(?:conv_in|input_blocks\.0\.0|token_embedding)\.weight$'
# Other models, by a part of a name, unless another part is there too.
OTHERS = (
  (
    r'^cond_stage_model\.',
    r'^conditioner\.|(?:^|\.)label_emb\.',
    'Stable Diffusion 1 or 2',
  ),
  (r'(?:^|\.)double_blocks\.\d', None, 'Flux'),
  (r'(?:^|\.)joint_blocks\.\d', None, 'Stable Diffusion 3'),
  (
    r'(?:^|\.)(?:controlnet_\w+|input_hint_block|zero_convs)\.',
    NETS,
    'a ControlNet, which steers a model',
  ),
  (
    r'(?:^|\.)(?:image_proj|ip_adapter)\.',
    NETS,
    'an IP-Adapter, which steers a model',
  ),
  (
    r'(?:^|\.)motion_modules\.',
    FIRST_LAYERS,
    'motion modules, which animate a model',
  ),
  (r'(?:^|\.)lora_controlnet$', None, 'a Control-LoRA, which steers a model'),
  (r'(?:^|\.)encoder_hid_proj\.weight$', None, 'Kolors'),
  (r'(?:^|\.)channelwise\.', None, 'Stable Cascade'),
  (
    r'^(?:(?:t2i_)?adapter\.)?body\.\d+\.(?:resnets|block1|in_conv)\.',
    NETS,
    'a T2I-Adapter, which steers a model',
  ),
  (
    r'(?:^|\.)block\.\d+\.layer\.\d+\.SelfAttention\.',
    NETS,
    'T5, the text encoder of other models',
  ),
  (
    r'(?:^|\.)(?:RDB\d|rdb\d|RG\d|residual_group)\.'
    r'|^(?:params_ema\.)?conv_first\.',
    NETS,
    'a program that enlarges images',
  ),
  (
    r'^(?:vision_model|visual)\.',
    NETS,
    'an image encoder of CLIP, which steers a model by images',
  ),
  (
    r'^lora_|\.lora_(?:A|B|up|down)(?:\.|$)|_lora\.(?:up|down)\.'
    r'|^lycoris_|\.(?:hada_w\w+|lokr_w\w+|oft_\w+|diff|set_weight)(?:\.|$)',
    FIRST_LAYERS,
    'a LoRA, which goes on top of a model',
  ),
  (
    rf'^(?:{companions.LEARNED_WORD})$',
    NETS,
    'an embedding of textual inversion, which goes on top of a model',
  ),
)


def check_is_sdxl(names: Collection[str], location: str) -> None:
  """Refuses a file of another model.

  Args:
    names: of its tensors, without wrapping modules.
    location: of the file, for errors.

  Raises:
    ValueError: which names the model and a tensor by which it is known.
  """
  if not names:
    raise ValueError(f'{location} has no tensors')
  for part, unless, model in OTHERS:
    name = next((n for n in names if re.search(part, n)), None)
    if name is None:
      continue
    if unless is None or not any(re.search(unless, n) for n in names):
      raise ValueError(f'{location} is not SDXL but {model}: it has {name}')
  # The UNets of both have the same names, but for the size of the image.
  for prefix in find_nets.UNET_PREFIXES:
    for first, size in (
      ('input_blocks.1.0.in_layers.2.weight', 'label_emb'),
      ('down_blocks.0.resnets.0.conv1.weight', 'add_embedding'),
    ):
      has_size = any(name.startswith(f'{prefix}{size}.') for name in names)
      if prefix + first in names and not has_size:
        raise ValueError(
          f'{location} is not SDXL but Stable Diffusion 1 or 2: its UNet has '
          f'no {prefix}{size}'
        )
