"""LCM-LoRA: distils SDXL into low-rank factors that sample in few steps.

  python -m sdxl_jax.train --config configs/lcm_lora.py --workdir DIR/lcm \
    --config.init_from=SDXL --config.data.folder.path=IMAGES
  python -m sdxl_jax.sample --weights DIR/lcm --preset lcm --prompt "..."

Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378 and, as
factors, 2311.05556): from noisy latents the frozen UNet takes one of 50 steps
of DDIM, with guidance of a scale drawn from 4 to 16; the UNet with factors is
trained to predict the same image at both ends of the step. It then samples in 4
steps, or 1 to 8, at --guidance_scale 1 with one call of the UNet for each: 4
calls in place of the 50 of 25 guided steps. The images provide noisy latents
and captions; since the targets are the teacher's, they need not be images that
the teacher was trained on.

Factors are saved, averaged and exported as those of configs/lora.py. Memory is
the same plus that of two more calls of the UNet, the teacher's and the
target's, which store no activations. To use the factors with another
fine-tuning of the base:

  python -m sdxl_jax.convert DIR/lcm lcm.safetensors --to lora
  python -m sdxl_jax.sample --weights OTHER --lora lcm.safetensors --preset lcm

Rank, rate and distance are those of diffusers' train_lcm_distill_lora_sdxl:
rank 64 in attention, feed-forward layers and convolutions. What is learned
begins at the step that ends at timestep 0, one example in 50, and spreads to
noisier ones: take large batches, with config.accumulation_steps if need be.

This config has not been trained at full size. In miniature (configs/tiny.py:
lcm, 400 steps of 16 images) the student is closer to the end of the teacher's
guided path than the base is from timestep 519 on, but not below. With one step
48 % of its samples are sharp, against 16 % of the base's, and the object is
right in 92 % and 95 %. More steps make it worse: 86 % are right with four and
70 % with eight, while the base reaches 94 % with four steps already. The likely
reason is that 400 steps are too few.
"""

from configs import lora


def get_config():
  config = lora.get_config()
  config.unlock()

  config.distillation.method = 'lcm'
  config.lora.attention.layers = (
    r'unet/.*/(to_[qkv]|to_out_0|proj|net_2|proj_in|proj_out|conv1|conv2|'
    r'conv_shortcut|time_emb_proj|(down|up)samplers_0/conv)'
  )
  config.lora.attention.rank = 64
  config.lora.attention.alpha = 64.0
  config.loss.loss_type = 'huber'
  config.loss.huber_schedule = 'constant'
  config.loss.huber_c = 0.001
  config.total_steps = 2000
  config.global_batch_size = 64
  config.caption_dropout = 0.0
  config.validation.every = 0  # the student is no denoiser

  config.samples.sampler = 'lcm'
  config.samples.steps = 4
  config.samples.guidance_scale = 1.0
  return config.lock()
