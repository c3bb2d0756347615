"""Kinds of files that hold one net, in all of its spellings."""

import functools
import re

from tests.support.file_kinds import (
  CLIP_G,
  CLIP_L,
  UNET,
  VAE,
  diffusers,
  entry,
  kind,
  part,
  refiner,
  rename,
  reshape,
  under,
)


def bare(prefix):
  return functools.partial(part, prefix)


def prefixed(prefix, make):
  return lambda: under(prefix, make())


BARE_VAE, DIFFUSERS_VAE = bare(VAE), functools.partial(diffusers, 'vae')
for title, make in (
  ('original', BARE_VAE),
  ('first_stage_model. of original', prefixed(VAE, BARE_VAE)),
  ('vae. of original', prefixed('vae.', BARE_VAE)),
  ('diffusers', DIFFUSERS_VAE),
  ('vae. of diffusers', prefixed('vae.', DIFFUSERS_VAE)),
  ('first_stage_model. of diffusers', prefixed(VAE, DIFFUSERS_VAE)),
):
  kind(f'autoencoder, {title}', ['vae'])(make)

OLD = (
  (r'(attentions\.0)\.to_q', r'\1.query'),
  (r'(attentions\.0)\.to_k', r'\1.key'),
  (r'(attentions\.0)\.to_v', r'\1.value'),
  (r'(attentions\.0)\.to_out\.0', r'\1.proj_attn'),
)
SHORT = (
  (r'(attentions\.0)\.to_([qkv])', r'\1.\2'),
  (r'(attentions\.0)\.to_out\.0', r'\1.proj_out'),
  (r'(attentions\.0)\.group_norm', r'\1.norm'),
)
TO = (
  (r'(attn_1)\.([qkv])\.', r'\1.to_\2.'),
  (r'(attn_1)\.proj_out', r'\1.to_out.0'),
  (r'(attn_1)\.norm', r'\1.group_norm'),
)
QUERY = (
  (r'(attn_1)\.q\.', r'\1.query.'),
  (r'(attn_1)\.k\.', r'\1.key.'),
  (r'(attn_1)\.v\.', r'\1.value.'),
  (r'(attn_1)\.proj_out', r'\1.proj_attn'),
)
KERNELS = (
  r'(attentions\.0|attn_1)\.(to_\w+(\.0)?|q|k|v|query|key|value|proj_\w+)'
)
SHAPES = {
  'matrix': lambda shape: shape[:2],
  'convolution': lambda shape: [*shape[:2], 1, 1],
  'convolution in one dimension': lambda shape: [*shape[:2], 1],
}
for title, make, rules in (
  ('query, key, value', DIFFUSERS_VAE, OLD),
  ('q, k, v of diffusers', DIFFUSERS_VAE, SHORT),
  ('to_q of diffusers', DIFFUSERS_VAE, ()),
  ('to_q of original', BARE_VAE, TO),
  ('query of original', BARE_VAE, QUERY),
  ('q of original', BARE_VAE, ()),
):
  for form, change in SHAPES.items():
    kind(f'attention as {title}, {form}', ['vae'])(
      lambda make=make, rules=rules, change=change: reshape(
        rename(make(), *rules), rf'{KERNELS}\.weight', change
      )
    )
for title, rules in (
  ('op', [(r'samplers\.0\.conv', 'samplers.0.op')]),
  ('Conv2d_0', [(r'samplers\.0\.conv', 'samplers.0.Conv2d_0')]),
  ('nin_shortcut', [('conv_shortcut', 'nin_shortcut')]),
  ('norm_out', [('conv_norm_out', 'norm_out')]),
):
  kind(f'older diffusers, {title}', ['vae'])(
    lambda rules=rules: rename(diffusers('vae'), *rules)
  )


@kind('convolution under two names', ['vae'])
def twice():
  entries = diffusers('vae')
  return entries | rename(
    {n: x for n, x in entries.items() if 'downsamplers' in n},
    (r'\.conv\.', '.Conv2d_0.'),
  )


@kind('quant_conv as a matrix', ['vae'])
def quant_conv_matrix():
  return reshape(part(VAE), r'quant_conv\.weight', lambda shape: shape[:2])


BARE_UNET = bare(UNET)
DIFFUSERS_UNET = functools.partial(diffusers, 'unet')
for title, make in (
  ('original', BARE_UNET),
  ('diffusion_model. of original', prefixed('diffusion_model.', BARE_UNET)),
  ('unet. of diffusers', prefixed('unet.', DIFFUSERS_UNET)),
  (f'{UNET} of diffusers', prefixed(UNET, DIFFUSERS_UNET)),
):
  kind(f'UNet, {title}', ['unet'])(make)


@kind('UNet for masks', ['unet'], slow=True,
      shapes={'conv_in.weight': [320, 9, 3, 3]})  # fmt: skip
def inpainting_unet():
  return diffusers('unet') | {'conv_in.weight': entry(320, 9, 3, 3)}


@kind('UNet of the refiner', ['unet'], lists='refiner')
def refiner_unet():
  return part(UNET, refiner())


@kind('CLIP L', ['text_encoder'], passed_over=1)
def clip_l():
  return part(CLIP_L)


@kind('CLIP L of transformers 5, with a projection', ['text_encoder'],
      passed_over=1, names=('text_projection.weight',))  # fmt: skip
def clip_l_5():
  entries = rename(diffusers('text_encoder'), (r'^text_model\.', ''))
  return entries | {'text_projection.weight': entry(768, 768)}


@kind('whole CLIP L', ['text_encoder'], passed_over=4)
def whole_clip_l():
  extra = {'vision_model.x.weight', 'visual_projection.weight', 'logit_scale'}
  extra |= {'text_model.embeddings.position_ids'}
  return diffusers('text_encoder') | {n: entry(4) for n in extra}


@kind("CLIP L in open_clip's names", ['text_encoder'], passed_over=1)
def clip_l_of_open_clip():
  shapes = {1280: 768, 5120: 3072, 3840: 2304}
  entries = {
    name: x | {'shape': [shapes.get(n, n) for n in x['shape']]}
    for name, x in part(CLIP_G).items()
    if not re.search(r'logit_scale|resblocks\.(1[2-9]|[23]\d)\.', name)
  }
  return under('clip_l.', entries)


@kind('CLIP G', ['text_encoder_2'])
def clip_g():
  return diffusers('text_encoder_2')


@kind("CLIP G in open_clip's names", ['text_encoder_2'], passed_over=1)
def clip_g_of_open_clip():
  return part(CLIP_G)


@kind('text encoder of another width', error='1024 channels.*768 and 1280')
def other_text_encoder():
  return reshape(
    diffusers('text_encoder'),
    '',
    lambda s: [1024 if n == 768 else n for n in s],
  )
