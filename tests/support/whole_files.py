"""Kinds of files with several nets, and what programs store beside them."""

from tests.support.file_kinds import (
  ALL,
  CLIP_G,
  CLIP_L,
  FIRST,
  PROJECTION,
  SCHEDULE,
  SECOND,
  TEXT,
  UNET,
  VAE,
  add_simple,
  base,
  diffusers,
  entry,
  kind,
  part,
  refiner,
  rename,
  under,
  without,
  without_unet,
)

WHOLE = {'passed_over': 2, 'names': ('position_ids', 'logit_scale')}
kind('base', ALL, refiner=False, **WHOLE)(base)
kind(
  'refiner',
  ('unet', 'vae', 'text_encoder_2'),
  refiner=True,
  lists='refiner',
  passed_over=1,
)(refiner)


@kind('projection as a linear layer', ALL, refiner=False, **WHOLE)
def script_projection():
  return rename(base(), (rf'^{PROJECTION}$', f'{PROJECTION}.weight'))


@kind(
  'projection of the refiner as a linear layer',
  ('unet', 'vae', 'text_encoder_2'),
  refiner=True,
  lists='refiner',
  passed_over=1,
)
def script_projection_of_the_refiner():
  return rename(refiner(), (r'text_projection$', 'text_projection.weight'))


@kind('both spellings of the projection', TEXT, **WHOLE)
def two_projections():
  entries = part('conditioner.')
  entries['embedders.1.model.text_projection.weight'] = entry(1280, 1280)
  return under('conditioner.', entries)


@kind('no projection', error=f'missing: {PROJECTION}. .*incomplete')
def no_projection():
  return without(without_unet(), PROJECTION)


for title, wrap in (
  ('data parallel', lambda name: f'module.{name}'),
  ('compiled', lambda name: f'_orig_mod.{name}'),
  ('compiled and parallel', lambda name: f'module._orig_mod.{name}'),
  ('in a state dict', lambda name: f'state_dict.{name}'),
  ('compiled inside', lambda name: name.replace('der.', 'der._orig_mod.', 1)),
):
  kind(title, ('vae', *TEXT), **WHOLE)(
    lambda wrap=wrap: {wrap(n): x for n, x in without_unet().items()}
  )


@kind('several types', ('vae', *TEXT), **WHOLE)
def several_types():
  types = {VAE: 'F32', CLIP_G: 'BF16'}
  return {
    n: x | {'dtype': next((t for p, t in types.items() if p in n), x['dtype'])}
    for n, x in without_unet().items()
  }


@kind('ComfyUI', ALL, refiner=False, passed_over=2)
def comfy():
  return (
    under('diffusion_model.', part(UNET))
    | under('vae.', part(VAE))
    | under('text_encoders.clip_l.transformer.', diffusers('text_encoder'))
    | under('text_encoders.clip_g.transformer.', diffusers('text_encoder_2'))
    | {'text_encoders.clip_l.logit_scale': entry()}
    | {'text_encoders.clip_g.logit_scale': entry()}
  )


@kind('older ComfyUI', TEXT, passed_over=3, names=('clip_l.text_projection',))
def older_comfy():
  return (
    under('clip_l.transformer.', diffusers('text_encoder'))
    | under('clip_g.transformer.', diffusers('text_encoder_2'))
    | {'clip_g.text_projection': entry(1280, 1280)}
    | {'clip_l.text_projection': entry(768, 768)}
    | {'clip_l.logit_scale': entry(), 'clip_g.logit_scale': entry()}
  )


@kind(
  'refiner of ComfyUI',
  ('unet', 'text_encoder_2'),
  refiner=True,
  lists='refiner',
)
def comfy_refiner():
  return under(UNET, part(UNET, refiner())) | under(
    'clip_g.', without(part(f'{FIRST}model.', refiner()), 'logit_scale')
  )


@kind('names of diffusers in one file', ALL, refiner=False)
def diffusers_in_one_file():
  entries = {}
  for component in ALL:
    entries |= under(f'{component}.', diffusers(component))
  return entries


@kind('transformers 5', TEXT)
def transformers_5():
  entries = {}
  for component in TEXT:
    names = rename(diffusers(component), (r'^text_model\.', ''))
    entries |= under(f'{component}.', names)
  return entries


for title, names in (
  ('noise schedule', SCHEDULE),
  ('average', ('model_ema.decay', 'model_ema.num_updates', 'model_ema.unetx')),
  ('loss', (f'{VAE}loss.logvar', f'{VAE}loss.perceptual_loss.lin0.weight')),
  ('discriminator', (f'{VAE}loss.discriminator.main.3.num_batches_tracked',)),
  ('state of training', ('global_step', 'epoch', 'optimizer.state.0.exp_avg')),
  ('sigmas of sgm', ('denoiser.sigmas',)),
  ('sampling of ComfyUI', ('model_sampling.sigmas', 'log_sigmas')),
  ('variance', ('logvar', 'lvlb_weights')),
  ('scale of latents', ('scale_factor',)),
  ('image encoder', (f'{CLIP_G}visual.conv1.weight', f'{CLIP_G}attn_mask')),
  ('first projection', (f'{CLIP_L}text_projection.weight',)),
  ('scales of CLIP', (f'{FIRST}logit_scale', f'{SECOND}logit_scale')),
):  # fmt: skip
  add_simple(title, names)

for title, names, error in (
  ('bundled embedding', ('bundle_emb.x.string_to_param.*',), 'textual inv'),
  ('embedding', ('embeddings.cat.clip_g',), 'textual inversion.*embeddings.ca'),
  ('LoRA of kohya', ('lora_unet_x.lora_up.weight',), 'LoRA.*lora_unet_x'),
  ('LoRA of PEFT', (f'{UNET}a.to_q.lora_A.default.weight',), 'LoRA.*lora_A'),
  ('LyCORIS', ('a.hada_w1_a', 'a.hada_w1_b'), r'LyCORIS \(2 tensors: a.hada'),
  ('differences', ('a.diff', 'a.diff_b'), 'difference to other weights'),
  ('ControlNet', ('control_model.input_blocks.0.0.weight',), 'ControlNet'),
  ('lllite', ('lllite_unet_x.weight',), 'ControlNet.*lllite_unet_x'),
  ('IP-Adapter', ('ip_adapter.1.to_k_ip.weight',), 'IP-Adapter'),
  ('T2I-Adapter', ('adapter.body.0.weight',), 'T2I-Adapter'),
  ('identity', ('id_encoder.fc.weight',), 'identity adapter'),
):
  add_simple(
    f'{title} inside', names, f'would change the image.*{error}.*--skip_un'
  )
  add_simple(f'{title} left out', names, skip=True)

for title, name in (
  ('unknown', 'some.thing'),
  ('unknown of a net', f'{VAE}decoder.thing.weight'),
  ('misspelt', f'{CLIP_L}text_model.encoder.layers.0.mlp.fc3.bias'),
):
  # The error of a net names it as the file does.
  add_simple(title, (name,), f'1 tensor .*{name}')
