"""What kinds of UNet there are, and which can work together."""

from sdxl_jax.checkpoints import loading


def is_inpainting_unet(nets):
  """Whether the UNet is given, beside x, the mask and what it leaves."""
  return nets.unet.in_channels == 2 * nets.vae.latent_channels + 1


def uses_cfg(nets, guidance):
  """Whether the UNet is asked without prompt too, and not told the scale."""
  return guidance.scale > 1 and not nets.unet.guidance_embed_dim


def check_nets(nets, image, mask):
  """Raises ValueError for a UNet of another kind, or without what it sees."""
  taken, c = nets.unet.in_channels, nets.vae.latent_channels
  if taken != c and not is_inpainting_unet(nets):
    raise ValueError(
      f'the UNet takes {taken} channels and the autoencoder gives {c}: it must '
      f'take {c}, or {2 * c + 1} with a mask and what that leaves of an image'
    )
  if is_inpainting_unet(nets) and (image is None or mask is None):
    raise ValueError(
      f'the UNet takes {taken} channels, as it repaints what is under a mask: '
      'give it image and mask, or take a base model'
    )


def check_refiner_matches_base(base, refiner):
  """Raises ValueError where the second cannot go on from the first."""
  if base.nets.refiner or not refiner.nets.refiner:
    raise ValueError(
      'refiner must be a refiner, which has one text encoder, and the pipeline '
      'before it a base'
    )
  facts = [
    {name: getattr(p.nets.vae, name) for name in loading.LATENTS}
    | {'schedule': p.nets.schedule, 'channels': channels}
    for p, channels in (
      (base, base.nets.unet.out_channels),
      (refiner, refiner.nets.unet.in_channels),
    )
  ]
  for name, ours in facts[0].items():
    if ours != facts[1][name]:
      raise ValueError(
        f'base and refiner do not fit together: {name} is {ours} of the one '
        f'and {facts[1][name]} of the other'
      )
