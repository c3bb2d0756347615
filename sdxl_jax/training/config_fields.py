"""The table of all fields of a config, with the kind of value each must have.

It has a row for each field of configs/default.py, and for those that other nets
have in addition. 0 stands for 'off' wherever a kind begins at 0.
"""

from sdxl_jax.data import cut_captions
from sdxl_jax.diffusion import noise_schedule, samplers
from sdxl_jax.models import compute_dtype, lora_kinds, stored_kernels
from sdxl_jax.sampling import settings
from sdxl_jax.training import (
  data_fields,
  distillation_fields,
  loss_fields,
  optimizer_fields,
  trackers,
)
from sdxl_jax.training.field_kinds import (
  COUNT,
  FACTOR,
  INF,
  SHARE,
  SIZE,
  SWITCHED,
  WEIGHT,
  Anything,
  Choice,
  Either,
  Flag,
  Items,
  Number,
  Optional,
  Text,
  Whole,
)

# Of transformers: one for each level of the UNet, or one for each block of it.
DEPTHS = Items(
  Either(SWITCHED, Items(COUNT, '(2, 1, 1)', least=1)), '(0, 2, 10)', least=1
)
DTYPE = Choice(compute_dtype.CHOICES)
ATTENTION = Choice(('auto', 'xla', 'cudnn', 'splash'))
REMAT = Choice(('none', 'full', 'dots'))
NETS = (
  'unet',
  'text_encoder',
  'text_encoder_2',
  'vae',
  'discriminator',
  'lora',
  'words',
)

# What each net has.
RUNTIME = {
  'dtype': DTYPE,
  'param_dtype': DTYPE,
  'attention': ATTENTION,
  'remat': REMAT,
}
# Those whose frozen kernels may be stored in 8 bits.
STORED = RUNTIME | {
  'weights_dtype': Optional(Choice(tuple(stored_kernels.LARGEST))),
}
TEXT_ENCODER = STORED | {
  'vocab_size': COUNT,
  'max_position_embeddings': COUNT,
  'hidden_size': COUNT,
  'intermediate_size': COUNT,
  'num_hidden_layers': COUNT,
  'num_attention_heads': COUNT,
  'hidden_act': Choice(('quick_gelu', 'gelu')),
  'projection_dim': Optional(COUNT),
  'eos_token_id': COUNT,
}

# {section: {field: kind}}; '' is the config itself.
SECTIONS = {
  '': {
    'seed': Whole(0, 2**63 - 1),
    'total_steps': COUNT,
    'global_batch_size': COUNT,
    'buckets_per_step': COUNT,
    'accumulation_steps': COUNT,
    'log_every': COUNT,
    'log_with': Items(Choice(trackers.NAMES), "('tensorboard', 'wandb')"),
    'log_tracker_name': Text(),
    'compile_threads': Whole(1, 64),
    'init_from': Text(),
    'init_variant': Text(),
    'init_vae': Text(),
    'from_scratch': Items(Choice(NETS), "('unet',)"),
    'task': Choice(('diffusion', 'autoencoder')),
    'trained': Items(Choice(NETS), "('unet',)"),
    'refiner': Flag(),
    'uncond': Choice(('zeros', 'empty')),
    'caption_dropout': SHARE,
    'max_token_length': Choice(cut_captions.LENGTHS),
    'skip_non_finite': SWITCHED,
    'preserve_embedding_norm': Flag(),
  },
  'mesh': {
    'data': Whole(-1, INF, excludes=0),
    'fsdp': Whole(-1, INF, excludes=0),
    'tensor': Whole(-1, INF, excludes=0),
    'processes': COUNT,
  },
  **data_fields.SECTIONS,
  'loss': loss_fields.KINDS,
  'distillation': distillation_fields.KINDS,
  'autoencoder': {
    'perceptual_weight': WEIGHT,
    'lpips': Items(Text(), "('vgg.pth', 'lin.pth')"),
    'kl_weight': WEIGHT,
    'learn_logvar': Flag(),
    'decoder_only': Flag(),
    'measure_latents': SWITCHED,
    'measure_mean': Flag(),
    'adversary_weight': WEIGHT,
    'adversary_start': SWITCHED,
    'adversary_features': COUNT,
    'adversary_layers': SWITCHED,
  },
  'optimizer': optimizer_fields.FIELDS,
  'checkpoint': {
    'every': COUNT,
    'max_to_keep': COUNT,
    'keep_every': SWITCHED,
  },
  'validation': {
    'share': Optional(Number(0, 0.5)),
    'every': SWITCHED,
    'records': COUNT,
    'buckets': COUNT,
    'timesteps': COUNT,
    'by_bucket': Flag(),
  },
  # A run has no ControlNets, which guess_mode is of.
  'samples': {n: Anything() for n in settings.FIELDS if n != 'guess_mode'}
  | {
    'every': SWITCHED,
    'prompts': Items(Text(), "('a red fox',)"),
    'prompts_file': Text(),
    'size': SIZE,
    'steps': Whole(1, 1000),
    'sampler': Choice(tuple(samplers.SAMPLERS)),
    'guidance_scale': Number(-INF, INF, excludes=INF),
    'zoom': COUNT,
  },
  'schedule': {
    'prediction': Choice(noise_schedule.PREDICTIONS),
    'zero_terminal_snr': Flag(),
    'shift': Number(0, 1000, excludes=0),
    'shift_size': SWITCHED,
    'num_train_timesteps': COUNT,
    'beta_start': SHARE,
    'beta_end': SHARE,
    'beta_schedule': Choice(('scaled_linear', 'linear')),
  },
  'unet': STORED
  | {
    'in_channels': COUNT,
    'out_channels': COUNT,
    'block_out_channels': Items(COUNT, '(320, 640, 1280)', least=1),
    'layers_per_block': COUNT,
    'transformer_depth': DEPTHS,
    'up_transformer_depth': Optional(DEPTHS),
    'mid_transformer_depth': Optional(SWITCHED),
    'num_heads': Items(COUNT, '(5, 10, 20)', least=1),
    'context_dim': COUNT,
    'vector_dim': COUNT,
    'size_embed_dim': COUNT,
    'guidance_embed_dim': Optional(COUNT),
    'norm_num_groups': COUNT,
    'scan_blocks': Flag(),
    'scan_unroll': COUNT,
  },
  'vae': RUNTIME
  | {
    'kind': Choice(('kl', 'patch')),
    'patch': COUNT,
    'detail': FACTOR,
    'in_channels': COUNT,
    'latent_channels': COUNT,
    'block_out_channels': Items(COUNT, '(128, 256, 512, 512)', least=1),
    'layers_per_block': COUNT,
    'norm_num_groups': COUNT,
    'scaling_factor': Optional(FACTOR),
    'latents_mean': Optional(Items(Number(), '(0.0, 0.0, 0.0, 0.0)')),
    'latents_std': Optional(Items(FACTOR, '(1.0, 1.0, 1.0, 1.0)')),
  },
  'text_encoder': TEXT_ENCODER,
  'text_encoder_2': TEXT_ENCODER,
}

# Sections whose names are the user's: of groups of factors, of words, and of
# sources.
OPEN = ('lora', 'words', 'data.mixture')
LORA = {'layers': Text(), 'rank': COUNT, 'alpha': FACTOR}
# Fields that a group of factors may lack.
LORA_KINDS = {
  'algo': Choice(lora_kinds.ALGOS),
  'dora_wd': Flag(),
  'factor': Whole(-1, INF, excludes=0),
}
WORD = {
  'token_string': Text(),
  'num_vectors_per_token': Whole(1, 75),  # all in one chunk
  'init_word': Text(),
  'weights': Text(),
}

FIELDS = {
  f'{section}.{name}'.removeprefix('.'): kind
  for section, fields in SECTIONS.items()
  for name, kind in fields.items()
}
