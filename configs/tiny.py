"""A small SDXL, trained on a CPU in minutes to generate simple scenes.

  python -m sdxl_jax.train --config configs/tiny.py --workdir /tmp/tiny

All the parts of SDXL, small: two text encoders (also trained, from random
parameters), pooled text and sizes as vector, transformers of depth [0, 1, 2],
several aspect buckets. Diffusion is on pixels: the autoencoder is the identity,
4 x 4 pixels to one position. The UNet predicts x0: with v, so few steps did not
suffice to predict the noise in 48 channels, and that part of the loss hid the
part that depends on the words. With zero terminal SNR, sampling starts from
pure noise.

configs/tiny.py:stage0 to :stage3 and :refiner are the paper's stages in
miniature, each from the workdir of the stage before, on the latents of stage 0;
see launch/recipe.sh. configs/tiny.py:lora fine-tunes the quick config on 20
images of a new object, :words learns a word for one, see
tests/benchmarks/learned_word.py, and :lcm distils it to a few steps.
"""

from configs import default

BUCKETS = ((40, 40), (40, 32), (32, 40), (48, 32), (32, 48))
# Combinations that the source `scenes` holds out.
PROMPTS = (
  'an apple on a green background',
  'a banana on a blue background',
  'a fish on a pink background',
  'a fox on a yellow background',
  'a frog on a white background',
  'a house on a blue background',
  'a penguin on a pink background',
  'a pig on a red background',
  'two octopuses on a white background',
)

# The quick config is trained without elephants, :lora on images that have none
# on these backgrounds.
LORA_UNSEEN = ('red', 'yellow', 'purple')


def get_config(stage=''):
  """Returns the quick config, or one of STAGES."""
  config = quick()
  if stage:
    config.unlock()
    STAGES[stage](config)
  return config.lock()


def quick():
  config = default.get_config()
  config.unlock()

  config.total_steps = 2000
  config.global_batch_size = 16
  config.trained = ('unet', 'text_encoder', 'text_encoder_2')

  config.data.source = 'scenes'
  config.data.buckets = BUCKETS
  config.data.num_threads = 1
  config.data.prefetch = 4
  config.data.scenes.resolution = 40
  config.data.scenes.objects = 9
  config.data.scenes.colours = 10
  config.data.scenes.max_objects = 2
  config.data.scenes.max_kinds = 1
  config.data.scenes.held_out = 0.4
  config.data.scenes.scales = (0.75, 2.0)
  config.data.scenes.jitter = 0.0
  # Around the buckets', so that a crop never reaches an object. Samples are
  # square, and so are three pictures in seven.
  config.data.scenes.aspects = tuple(
    h / w * change
    for h, w in BUCKETS + 2 * ((40, 40),)
    for change in (0.94, 0.97, 1.0)
  )

  config.schedule.prediction = 'x0'
  config.schedule.zero_terminal_snr = True

  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 50
  config.optimizer.schedule = 'cosine'
  config.optimizer.b2 = 0.99
  config.optimizer.ema_decay = 0.99

  config.checkpoint.every = 500
  config.validation.share = 0.0  # `scenes` holds out combinations itself
  config.validation.every = 500
  config.samples.every = 500
  config.samples.prompts = PROMPTS
  config.samples.size = (40, 40)
  config.samples.steps = 25
  config.samples.guidance_scale = 3.0
  config.samples.zoom = 3

  config.unet.in_channels = config.unet.out_channels = 48
  config.unet.block_out_channels = (64, 64, 64)
  config.unet.layers_per_block = 1
  config.unet.transformer_depth = (0, 1, 2)
  config.unet.mid_transformer_depth = 2
  config.unet.num_heads = (2, 2, 2)
  config.unet.context_dim = 32 + 32
  config.unet.vector_dim = 64 + 6 * 32
  config.unet.size_embed_dim = 32
  config.unet.norm_num_groups = 8
  config.unet.dtype = 'float32'
  config.unet.remat = 'none'
  config.unet.scan_blocks = False  # so small that a loop costs more

  config.vae = dict(
    kind='patch', in_channels=3, patch=4, detail=4.0, scaling_factor=1.0
  )
  small = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    dtype='float32',
  )
  config.text_encoder = default.text_encoder(**small)
  config.text_encoder_2 = default.text_encoder(
    **small, hidden_act='gelu', projection_dim=64
  )
  return config.lock()


def stage0(config):
  """The autoencoder, 4 x 4 pixels to 8 channels, from crops of 48 px."""
  config.task = 'autoencoder'
  config.trained = config.from_scratch = ('vae', 'discriminator')
  config.total_steps = 800
  config.global_batch_size = 8
  config.data.buckets = ((48, 48),)
  config.data.scenes.resolution = 64
  config.autoencoder.measure_latents = 256
  config.autoencoder.adversary_start = 400
  config.autoencoder.adversary_features = 32
  config.autoencoder.adversary_layers = 2
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.samples.every = 200
  learned_latents(config)


def stage1(config):
  """Squares of 16 px; text encoders are trained too, from random parameters."""
  config.total_steps = 1500
  config.from_scratch = config.trained
  learned_latents(config)
  square(config, 16)


def stage2(config):
  """Squares of 32 px, from stage 1; text encoders are frozen from here on."""
  config.total_steps = 800
  config.trained = ('unet',)
  learned_latents(config)
  square(config, 32)


def stage3(config):
  """Seven buckets around 40 px, from stage 2, with offset noise."""
  config.total_steps = 1200
  config.trained = ('unet',)
  config.data.buckets = (*BUCKETS, (56, 28), (28, 56))
  config.loss.offset_noise = 0.05
  learned_latents(config)


def refiner(config):
  """The last 200 timesteps, with stage 3's second text encoder.

  The UNet is trained from random parameters, on images of varying noise with a
  score that measures it.
  """
  config.total_steps = 400
  config.trained = config.from_scratch = ('unet',)
  config.refiner = True
  config.uncond = 'empty'
  config.loss.timestep_range = (0, 200)
  config.data.scenes.scored = True
  learned_latents(config)
  config.text_encoder = None
  config.unet.context_dim = 32
  config.unet.vector_dim = 64 + 5 * 32
  config.checkpoint.every = 200
  config.samples.every = 0  # the refiner cannot generate by itself


def lora(config):
  """Low-rank factors of the quick config's UNet and text encoders."""
  config.trained = ('lora',)
  config.lora.unet = dict(
    layers=r'unet/.*/(to_[qkv]|to_out_0|proj|net_2|proj_in|proj_out)',
    rank=8,
    alpha=8.0,
  )
  config.lora.text = dict(
    layers=r'text_encoder(_2)?/.*/(([qkv]|out)_proj|fc[12])',
    rank=8,
    alpha=8.0,
  )
  config.total_steps = 200
  config.global_batch_size = 8
  config.data.source = 'folder'
  config.data.buckets = BUCKETS[:1]
  config.checkpoint.every = config.samples.every = 100
  config.samples.prompts = (
    *(f'an elephant on a {colour} background' for colour in LORA_UNSEEN),
    *PROMPTS[:3],  # objects that the base knows
  )


def lcm(config):
  """A student of the quick config in few steps, as factors of its UNet."""
  config.trained = ('lora',)
  config.distillation.method = 'lcm'
  config.distillation.w_min = 1.0  # around the 2 of guidance_scale 3
  config.distillation.w_max = 3.0
  config.lora.unet = dict(
    layers=r'unet/.*/(to_[qkv]|to_out_0|proj|net_2|proj_in|proj_out|conv[12])',
    rank=16,
    alpha=16.0,
  )
  config.total_steps = 400
  config.data.buckets = BUCKETS[:1]  # three nets in a program compile long
  config.caption_dropout = 0.0
  config.optimizer.learning_rate = 1e-3
  config.validation.every = 0
  config.checkpoint.every = config.samples.every = 200
  config.samples.sampler = 'lcm'
  config.samples.steps = 4
  config.samples.guidance_scale = 1.0


def words(config):
  """A word for the quick config, of an object on a few images."""
  config.trained = ('words',)
  config.words.main = dict(
    token_string='<new>', init_word='apple', num_vectors_per_token=2
  )
  # Text is pooled at its end, behind the background, not at the word.
  config.text_encoder.eos_token_id = config.text_encoder_2.eos_token_id = 49407
  config.preserve_embedding_norm = True
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 0
  config.total_steps = 200
  config.global_batch_size = 8
  config.caption_dropout = 0.0
  config.data.source = 'folder'
  config.data.buckets = BUCKETS[:1]
  config.checkpoint.every = config.samples.every = 100
  config.samples.prompts = (
    *(f'a <new> on a {colour} background' for colour in LORA_UNSEEN),
    *PROMPTS[:3],  # as without the word
  )


def learned_latents(config):
  """Sets up the latents of stage 0, with the scaling that it measured."""
  config.unet.in_channels = config.unet.out_channels = 8
  config.vae = default.get_config().vae
  config.vae.update(
    latent_channels=8,
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    norm_num_groups=8,
  )


def square(config, side):
  config.data.buckets = ((side, side),)
  config.data.scenes.resolution = 40  # no image is smaller than its bucket
  config.samples.size = (side, side)


STAGES = {
  'stage0': stage0,
  'stage1': stage1,
  'stage2': stage2,
  'stage3': stage3,
  'refiner': refiner,
  'lora': lora,
  'lcm': lcm,
  'words': words,
}
