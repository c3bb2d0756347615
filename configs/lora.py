"""LoRA: trains low-rank factors of SDXL's kernels on a few images.

  python -m sdxl_jax.train --config configs/lora.py --workdir DIR/lora \
    --config.init_from=SDXL --config.data.folder.path=IMAGES
  python -m sdxl_jax.sample --weights DIR/lora --prompt "..."

A kernel W becomes W + alpha / rank * a b in the layers that match a pattern of
config.lora; only a and b are trained, averaged and saved (Hu et al. 2021). To
change the rank, pass --config.lora.attention.rank=64, and alpha likewise. A
pattern must match the whole path of a layer. To train the text encoders as
well, add to a config of your own

  config.lora.text = dict(
    layers=r'text_encoder(_2)?/.*/(([qkv]|out)_proj|fc[12])', rank=8, alpha=8.0)

Convolutions can be trained too (LoCon): r'unet/.*/(conv1|conv2|conv_shortcut)'.
Further fields of a group choose another kind of difference, in the words of
LyCORIS (Yeh et al. 2023), whose files other programs read:
--config.lora.attention.algo=loha, or lokr (with .factor=8, say), or full, a
whole difference, for which rank and alpha count nothing. With .dora_wd the norm
of each output is trained besides (Liu et al. 2024, DoRA), with any algo but
full. OneTrainer's words are peft_type and lora_decompose. LoHa multiplies by a
difference of the kernel's size at each step, which is not stored; LoKr computes
its products without one.

configs/lora.py:prior is DreamBooth with prior preservation (Ruiz et al. 2022),
so that the base does not forget the object's class: half of the images are of
other members of the class, for example sampled from the base itself.

  --config.data.mixture.mine.path=IMAGES     "a photo of a sks dog"
  --config.data.mixture.others.path=OTHERS   "a photo of a dog"

DreamBooth's weight w of the prior is the ratio of the shares here: in
expectation, the loss L(mine) + w L(class) and shares of 1 : w have the same
gradient up to a factor, which Adam's update does not depend on. With 20 and 200
images, each of the 20 is used ten times as often.

Rank 16 in all attention layers of the UNet: 23 M of 2567 M parameters, 93 MB in
float32 as in a file, four times that with moments and EMA in a checkpoint. UNet
and text encoders compute and are stored in bfloat16, or in float16 on GPUs that
do not multiply bfloat16, such as T4 and V100: with the autoencoder, which stays
in float32, they take 7.1 GB. On a CPU it is float32, and 13.9 GB.

To train on a small device, store the kernels of the frozen nets in 8 bits, as
`int8` or `float8_e4m3fn` with a scale for each output channel (QLoRA has 4):

  --config.unet.weights_dtype=int8 --config.text_encoder.weights_dtype=int8 \
  --config.text_encoder_2.weights_dtype=int8

They then take 3.9 GB in place of 7.1; factors, their gradients and files stay
as they are, with any algo. Precomputed data leave the UNet alone on the device.

This config has not been trained at full size yet. In miniature
(configs/tiny.py:lora, images by tests/benchmarks/one_object.py), 200 steps of 8
images take three minutes of CPU time: a base that was trained without elephants
then generates them on three colours that none of the 20 images has. The file
has 0.83 MB; a checkpoint has 5 MB, one of all nets 64 MB. Without a prior, a
banana on blue, one of the colours of the 20 images, becomes an elephant too;
apple and fish stay.
"""

from configs import default


def get_config(kind=''):
  """Returns the config for a folder of images; 'prior': with a class prior."""
  config = default.get_config()
  config.unlock()

  config.trained = ('lora',)
  config.lora.attention = dict(
    layers=r'unet/.*/attn[12]/(to_[qkv]|to_out_0)',
    rank=16,
    alpha=16.0,
    algo='lora',
    dora_wd=False,
    factor=-1,
  )
  config.total_steps = 1000
  config.global_batch_size = 4
  config.caption_dropout = 0.0  # the base was trained with it

  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 50
  config.optimizer.ema_decay = 0.99
  config.log_every = 10
  config.checkpoint.every = 250
  config.samples.every = 250
  config.validation.every = 250

  # Frozen nets compute in the type that suits the device, and are stored in it.
  for net in (config.unet, config.text_encoder, config.text_encoder_2):
    net.dtype = net.param_dtype = 'auto'

  if kind == 'prior':
    config.data.source = 'mixture'
    for name in ('mine', 'others'):
      config.data.mixture[name] = dict(source='folder', path='', share=0.5)
  elif kind:
    raise ValueError(f"configs/lora.py:{kind} is not one of '' and 'prior'")
  return config.lock()
