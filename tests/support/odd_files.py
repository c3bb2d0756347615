"""Kinds of files of other models, with wrong tensors, and of folders."""

import re

from tests.support.file_kinds import (
  UNET,
  base,
  diffusers,
  entry,
  kind,
  part,
  rename,
  under,
  without,
)
from tests.support.net_files import OLD


def single(name, *shape):
  return lambda: {name: entry(*shape)}


for title, name, error in (
  ('Stable Diffusion 1', 'cond_stage_model.transformer.x', 'Stable Diff.* 1 o'),
  ('Flux', 'double_blocks.0.img_attn.proj.bias', 'not SDXL but Flux'),
  ('SD 3', f'{UNET}joint_blocks.0.x.weight', 'not SDXL but Stable Diffusion 3'),
  ('LoRA', 'lora_unet_x.lora_up.weight', 'not SDXL but a LoRA'),
  ('LoRA of diffusers', 'unet.x.to_q.lora_A.weight', 'not SDXL but a LoRA'),
  ('LoHa', 'unet.down_blocks.0.x.hada_w1_a', 'not SDXL but a LoRA'),
  ('differences', 'diffusion_model.out.2.diff', 'not SDXL but a LoRA'),
  ('Control-LoRA', 'lora_controlnet', 'not SDXL but a Control-LoRA'),
  ('T2I-Adapter', 'adapter.body.0.resnets.0.block1.weight', 'a T2I-Adapter'),
  ('T5', 'encoder.block.0.layer.0.SelfAttention.q.weight', 'but T5'),
  ('ESRGAN', 'model.1.sub.0.RDB1.conv1.0.weight', 'enlarges images'),
  ('CLIP', 'vision_model.embeddings.x', 'an image encoder of CLIP'),
  ('Stable Cascade', 'down_blocks.0.0.channelwise.0.weight', 'Stable Cascade'),
  ('IP-Adapter', 'image_proj.proj.weight', 'not SDXL but an IP-Adapter'),
  ('textual inversion', 'clip_g', 'not SDXL but an embedding'),
  ('average alone', 'model_ema.decay', 'no net of SDXL: model_ema.decay'),
  ('foreign', 'x', '1 tensor of no net of SDXL: x'),
):
  kind(f'file of {title}', error=error)(single(name, 2, 768))
for box in ('module.', 'state_dict.'):
  kind(f'Stable Diffusion 1 in {box}', error='Stable Diffusion 1 or 2')(
    single(f'{box}cond_stage_model.transformer.x', 2, 768)
  )
kind('empty file', error='has no tensors')(dict)


@kind('ControlNet', error='not SDXL but a ControlNet')
def controlnet():
  entries = {n: x for n, x in diffusers('unet').items() if 'up_bl' not in n}
  return entries | {'controlnet_cond_embedding.conv_in.weight': entry(16)}


@kind('UNet of Kolors', error='not SDXL but Kolors')
def kolors_unet():
  return diffusers('unet') | {'encoder_hid_proj.weight': entry(2048, 4096)}


@kind('UNet of Stable Diffusion 1', error='Stable Diffusion 1 or 2.*label_emb')
def sd_1_unet():
  return {n: x for n, x in base().items() if UNET in n and 'label_' not in n}


for title, name in (
  ('first convolution', 'input_blocks.0.0.weight'),
  ('downsampler', 'input_blocks.3.0.op.weight'),
  ('norm', 'input_blocks.8.1.transformer_blocks.9.norm1.weight'),
  ('context', 'middle_block.1.transformer_blocks.0.attn2.to_k.weight'),
):
  kind(f'without the {title}', error=f'1 tensor of .* missing: {UNET}{name}')(
    lambda name=name: without(under(UNET, part(UNET)), UNET + name)
  )
for title, name, shape in (
  ('vector', f'{UNET}label_emb.0.0.weight', (1280, 2817)),
  ('input', f'{UNET}input_blocks.0.0.weight', (320, 5, 3, 3)),
  ('context', f'{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight',
   (1280, 768)),
):  # fmt: skip
  kind(
    f'odd {title}', error=rf'{name} has the shape {re.escape(str(shape))}, but'
  )(
    lambda name=name, shape=shape: (
      under(UNET, part(UNET)) | {name: entry(*shape)}
    )
  )


@kind('folder with companions', ['text_encoder'], component='text_encoder',
      passed_over=3, names=('text_projection.weight',))  # fmt: skip
def folder_with_companions():
  extra = 'text_model.embeddings.position_ids', 'logit_scale'
  entries = diffusers('text_encoder') | {n: entry(4) for n in extra}
  return entries | {'text_projection.weight': entry(768, 768)}


@kind('folder of a parallel run', ['vae'], component='vae')
def parallel_folder():
  return under('module.', rename(diffusers('vae'), *OLD))


def unmerged_lora():
  """A net that PEFT saved with an adapter."""
  name = r'(mid_block\.attentions\.0\.to_q)\.'
  return rename(diffusers('vae'), (name, r'\1.base_layer.')) | {
    'encoder.mid_block.attentions.0.to_q.lora_A.default.weight': entry(4, 512)
  }


kind(
  'folder with a LoRA',
  component='vae',
  error='LoRA.*to_q.lora_A.default.weight.*--skip_unsupported',
)(unmerged_lora)
kind('folder with a LoRA left out', ['vae'], component='vae', passed_over=1,
     skip=True)(unmerged_lora)  # fmt: skip


@kind('folder with an unknown tensor', component='vae', error='decoder.thing')
def folder_with_unknown():
  return diffusers('vae') | {'decoder.thing': entry(4)}


@kind('autoencoder with a tensor of a UNet', error='1 tensor.*: conv_in.weight')
def stray_tensor():
  return diffusers('vae') | {'conv_in.weight': entry(320, 4, 3, 3)}


@kind(
  'two nets without prefixes',
  error=r'\d+ tensors without a place in the net: text_model.*without them',
)
def two_bare_nets():
  return diffusers('text_encoder') | diffusers('vae')
