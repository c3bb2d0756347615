"""Textual inversion: learns a word for what a few images show.

  python -m sdxl_jax.train --config configs/textual_inversion.py \
    --workdir WORD --config.init_from=SDXL --config.data.folder.path=IMAGES
  python -m sdxl_jax.sample --weights WORD --prompt "<new> in the snow"
  python -m sdxl_jax.convert WORD new.safetensors --to embedding

Only the token embeddings of the word are trained, in both text encoders (Gal et
al. 2022); all nets stay as they are. The word, the text that it begins with and
the number of its vectors are fields of config.words, here of one word, `main`:

  --config.words.main.init_word=fox --config.words.main.num_vectors_per_token=4

Where an init_word has fewer tokens than the word has vectors, they are taken
over again. A token_string must not be in CLIP's vocabulary; another one belongs
into config.samples.prompts, too. A word may go on from a file of embeddings,
weights='FILE' in place of init_word. Several words stand side by side.

The captions of the images contain the word. Images without captions, with
--config.data.folder.captions=False, get one of config.data.templates in each
pass, whose {} is the word: those of configs/textual_inversion.py are of an
object, and those of configs/textual_inversion.py:style of a style.

configs/textual_inversion.py:pivotal trains the word together with low-rank
factors of the UNet's attention (pivotal tuning, Roich et al. 2022). Both files
are then needed:

  python -m sdxl_jax.convert WORD new.safetensors --to embedding
  python -m sdxl_jax.convert WORD style.safetensors --to lora

The vectors keep the norm that they begin with (config.preserve_embedding_norm):
without it they outgrow the table and drown the other words of a prompt.
OneTrainer's setting of that name scales them to the median norm of the table.
Vectors do not decay.

The fields are those of sd-scripts: token_string, init_word, weights and
num_vectors_per_token; its use_object_template and use_style_template are the
templates.

Text is pooled at its end, eos_token_id 49407, as sd-scripts, A1111 and ComfyUI
do. diffusers, and this program with the published config.json, whose
eos_token_id is 2, pool at the largest id, which is the last vector of a word:
what is meant for diffusers is better trained with
--config.text_encoder_2.eos_token_id=2. There, what follows the word in a prompt
does not reach the pooled text.

Two vectors have 4,096 numbers, 16 KB as a file. The gradient runs through UNet
and text encoders, whose activations are computed again (remat).

This config has not been trained at full size yet. In miniature
(configs/tiny.py:words, tests/benchmarks/learned_word.py), 200 steps of 8 images
of a frog take a minute of CPU time. A word that began as `apple` then gives a
frog on all of eight backgrounds, three of which are in none of the images:

  eos_token_id  norm kept  loss   difference to a frog  to an apple
  49407         yes        0.281  0.23                  0.66
  49407         no         0.284  0.25                  0.67
  2             no         0.346  0.62                  0.90

The loss is that of steps 101 to 150; the difference is in [-1, 1], and that of
the base's frog and apple is 0.64. In the last row all backgrounds are lost.
"""

from configs import default

# Of an object: the word names it.
OBJECT = (
  'a photo of a {}',
  'a photo of the {}',
  'a photo of one {}',
  'a close-up photo of a {}',
  'a cropped photo of the {}',
  'a bright photo of the {}',
  'a dark photo of the {}',
  'a photo of a clean {}',
  'a photo of a small {}',
  'a photo of a large {}',
  'a good photo of a {}',
  'a rendering of a {}',
  'a depiction of the {}',
)
# Of a style: the word describes how a picture is made.
STYLE = (
  'a painting in the style of {}',
  'a picture in the style of {}',
  'a rendering in the style of {}',
  'a close-up painting in the style of {}',
  'a cropped painting in the style of {}',
  'a bright painting in the style of {}',
  'a dark painting in the style of {}',
  'a small painting in the style of {}',
  'a large painting in the style of {}',
)


def get_config(kind=''):
  """Returns the config of an object, of a 'style', or of a 'pivotal' tuning."""
  config = default.get_config()
  config.unlock()

  config.trained = ('words',)
  config.words.main = dict(
    token_string='<new>', init_word='photo', num_vectors_per_token=2
  )
  config.data.templates = STYLE if kind == 'style' else OBJECT
  config.preserve_embedding_norm = True
  config.total_steps = 1000
  config.global_batch_size = 4
  config.caption_dropout = 0.0  # the base was trained with it

  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup_steps = 0
  config.optimizer.ema_decay = 0.99
  config.log_every = 10
  config.checkpoint.every = 250
  config.samples.every = 250
  config.validation.every = 250
  config.samples.prompts = ('a photo of <new>', '<new> in the snow')

  # Frozen nets compute in the type that suits the device, and are stored in it.
  for net in (config.unet, config.text_encoder, config.text_encoder_2):
    net.dtype = net.param_dtype = 'auto'
  for net in (config.text_encoder, config.text_encoder_2):
    net.remat = 'full'
    net.eos_token_id = 49407

  if kind == 'pivotal':
    config.trained = ('words', 'lora')
    config.lora.attention = dict(
      layers=r'unet/.*/attn[12]/(to_[qkv]|to_out_0)', rank=16, alpha=16.0
    )
    config.optimizer.learning_rate = 3e-4
  elif kind not in ('', 'style'):
    raise ValueError(
      f"configs/textual_inversion.py:{kind} is not one of '', 'style' and "
      "'pivotal'"
    )
  return config.lock()
