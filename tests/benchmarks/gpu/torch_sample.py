"""Images per second of diffusers, compiled as its guide to speed has it."""

import functools

import diffusers
import torch

from tests.benchmarks.gpu import settings, torch_nets

GUIDANCE_SCALE = 8.0


def measure(setting):
  """Reports a line for each batch, the smallest first."""
  dtype = setting.choice
  torch_dtype = torch_nets.dtype_of(setting, dtype)
  torch.set_float32_matmul_precision('high')  # TF32, as XLA has it
  pipeline = None
  for batch in setting.batches:
    with setting.attempt(dtype=dtype, batch=batch):
      if pipeline is None:
        pipeline = make_pipeline(setting, torch_dtype)
      torch_nets.memory(setting)
      fields = settings.timed(
        sampler(setting, pipeline, batch, torch_dtype), setting.turns
      )
      setting.report(
        dtype=str(torch_dtype).removeprefix('torch.'),
        batch=batch,
        images_per_s=settings.rounded(batch / fields['s']),
        peak_gb=torch_nets.memory(setting),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        note='text encoders not run',
        **fields,
      )


def make_pipeline(setting, dtype):
  """Makes diffusers' pipeline without text encoders."""
  unet = torch_nets.make_unet(setting).to(dtype).eval()
  # The autoencoder would overflow in float16.
  vae_dtype = torch.bfloat16 if dtype == torch.float16 else dtype
  vae = torch_nets.make_vae(setting).to(vae_dtype).eval()
  pipeline = diffusers.StableDiffusionXLPipeline(
    vae=vae,
    text_encoder=None,
    text_encoder_2=None,
    tokenizer=None,
    tokenizer_2=None,
    unet=unet,
    scheduler=diffusers.EulerDiscreteScheduler(
      beta_start=0.00085,
      beta_end=0.012,
      beta_schedule='scaled_linear',
      steps_offset=1,
      timestep_spacing='leading',
    ),
    add_watermarker=False,
  )
  pipeline.set_progress_bar_config(disable=True)
  unet.to(memory_format=torch.channels_last)
  vae.to(memory_format=torch.channels_last)
  pipeline.fuse_qkv_projections(vae=False)
  # A program for each batch, as ours; on a CPU compiling is not worth it.
  if not setting.tiny:
    compiled = functools.partial(torch.compile, fullgraph=True, dynamic=False)
    pipeline.unet = compiled(unet)
    vae.decode = compiled(vae.decode)
  return pipeline


def sampler(setting, pipeline, batch, dtype):
  """Returns a function that samples a batch; the images end on the host."""
  draw = functools.partial(
    torch.randn, device=torch_nets.device_of(setting), dtype=dtype
  )
  tokens, context, pooled = (
    torch_nets.TOKENS,
    torch_nets.CONTEXT,
    torch_nets.POOLED,
  )
  text = dict(
    prompt_embeds=draw(batch, tokens, context),
    negative_prompt_embeds=draw(batch, tokens, context),
    pooled_prompt_embeds=draw(batch, pooled),
    negative_pooled_prompt_embeds=draw(batch, pooled),
  )
  height, width = setting.size

  def run():
    with torch.inference_mode():
      latents = pipeline(
        height=height,
        width=width,
        num_inference_steps=setting.steps,
        guidance_scale=GUIDANCE_SCALE,
        output_type='latent',
        **text,
      ).images
      # By hand, since a float16 pipeline would turn the latents to its type.
      vae = pipeline.vae
      latents = latents.to(vae.dtype) / vae.config.scaling_factor
      vae.decode(latents, return_dict=False)[0].float().cpu()

  return run
