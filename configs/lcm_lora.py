"""LCM-LoRA: distils SDXL to a few steps, as factors beside the frozen base.

  python -m sdxl_jax.train --config configs/lcm_lora.py --workdir DIR/lcm \
    --config.init_from=SDXL --config.data.folder.path=IMAGES
  python -m sdxl_jax.sample --weights DIR/lcm --preset lcm --prompt "..."

Latent consistency distillation (Luo et al. 2023, arXiv 2310.04378 and, as
factors, 2311.05556): from noisy latents the frozen UNet takes one of 50 steps
of DDIM, with guidance of a scale drawn from 4 to 16; the UNet with factors is
trained to see the same image from both ends of the step. It then draws in 4
steps, or 1 to 8, and at --guidance_scale 1 with one call of the UNet for each:
12 times fewer calls than 25 guided steps. The images say which noisy latents
and captions it is trained on; what is learned is the teacher's, so that they
need not be the images of the teacher's own training.

The factors are saved, averaged and exported as those of configs/lora.py, whose
memory they need plus that of the teacher's and the target's call of the UNet,
which keep nothing for a backward pass. Beside other fine-tunings of the base:
sample --lora DIR/lcm/checkpoints/STEP --preset lcm.

Rank, rate and distance are those of diffusers' train_lcm_distill_lora_sdxl:
rank 64 in attention, feed-forward layers and convolutions. What is learned
begins at the step that ends at timestep 0, one example in 50, and spreads to
noisier ones: take large batches, with config.accumulation_steps if need be.

This config has not been trained at full size. In miniature (configs/tiny.py:
lcm, 400 steps of 16 images) the student is nearer to the end of the teacher's
guided path than the base is, from timestep 519 on, and not yet below. In one
step 48 % of its samples are sharp, and 16 % of the base's, with the right
object in 92 % and 95 %; in four steps it has 86 % and the base, which draws
these scenes in four steps as well as in 25, 94 %. So it shows the one step, and
not a gain with more: 400 steps are too few.
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
