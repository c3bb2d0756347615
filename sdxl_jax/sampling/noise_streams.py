"""Numbers of the random streams that an image's key is folded with."""

import enum


class NoiseStream(enum.IntEnum):
  """Streams beside those of the sampler, which takes 0 to its steps.

  The numbers decide what a seed gives: they never change.
  """

  IMAGE_ENCODING = 2**30  # the autoencoder's sample of an init image
  IMAGE_NOISE = 2**30 + 1  # added to an init image's latents
  REFINER_NOISE = 2**30 + 2  # added to the latents that a refiner renoises
  MASKED_IMAGE_ENCODING = 2**30 + 3  # the sample of what a mask leaves
