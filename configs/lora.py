"""LoRA: low-rank factors beside the kernels of SDXL, from a few pictures.

  python -m sdxl_jax.train --config configs/lora.py --workdir DIR/lora \
    --config.init_from=SDXL --config.data.folder.path=PICTURES
  python -m sdxl_jax.sample --weights DIR/lora --prompt "..."

W becomes W + alpha / rank * a b in the layers that the patterns of config.lora
name; only a and b are trained, averaged and saved (Hu et al. 2021). Another
rank is --config.lora.attention.rank=64 with alpha beside it. A pattern is
matched with the whole path of a layer; to train the text towers as well, add in
a config of your own

  config.lora.text = dict(
    layers=r'text_encoder(_2)?/.*/(([qkv]|out)_proj|fc[12])', rank=8, alpha=8.0)

Convolutions are layers as others: r'unet/.*/(conv1|conv2|conv_shortcut)'.

configs/lora.py:prior is DreamBooth's (Ruiz et al. 2022), which keeps what the
base knows of the class: half of each pass are pictures of other members of it,
perhaps drawn with the base itself.

  --config.data.mixture.mine.path=PICTURES   "a photo of a sks dog"
  --config.data.mixture.others.path=OTHERS   "a photo of a dog"

Its weight of the prior is the ratio of the shares: in expectation, a loss of
L(mine) + w L(class) and shares of 1 : w have the same gradient, but for a
factor that Adam does not see. Twenty pictures beside two hundred are gone
through ten times as often.

Rank 16 beside all attention of the UNet: 23 M of 2567 M parameters, 93 MB in
float32 as in a file, four times that with moments and EMA in a checkpoint. UNet
and towers are held in bfloat16: with the autoencoder they take 7.1 GB.

Full size is not trained yet. In miniature (configs/tiny.py:lora, pictures by
tests/benchmarks/one_object.py), 200 steps of 8 pictures take three minutes of
CPU time: a base that never saw an elephant draws it on three colours that none
of the 20 pictures has. The file has 0.83 MB, a checkpoint 5 where one of all
nets has 64. Without a prior, a banana on blue, a colour of the 20, becomes an
elephant too; apple and fish stay.
"""

from configs import default


def get_config(kind=''):
  """Pictures of a folder, or 'prior': beside those of their class."""
  config = default.get_config()
  config.unlock()

  config.trained = ('lora',)
  config.lora.attention = dict(
    layers=r'unet/.*/attn[12]/(to_[qkv]|to_out_0)',
    rank=16,
    alpha=16.0,
  )
  config.total_steps = 1000
  config.global_batch_size = 4
  config.caption_dropout = 0.0  # the base has learned to do without

  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 50
  config.optimizer.ema_decay = 0.99
  config.log_every = 10
  config.checkpoint.every = 250
  config.samples.every = 250

  # What is not trained need not be stored more precisely than it is used.
  for net in (config.unet, config.text_encoder, config.text_encoder_2):
    net.param_dtype = 'bfloat16'

  if kind == 'prior':
    config.data.source = 'mixture'
    for name in ('mine', 'others'):
      config.data.mixture[name] = dict(source='folder', path='', share=0.5)
  elif kind:
    raise ValueError(f"configs/lora.py:{kind} is not one of '' and 'prior'")
  return config.lock()
