"""Finds the most that a command samples at once."""

from collections.abc import Sequence

from PIL import Image

from sdxl_jax.sampling import (
  init_images,
  offload_choice,
  prompt_plan,
  sample_request,
)

# Chunks of 77 tokens that a prompt without a limit is taken to have.
LONG = 4


def largest(
  requests: Sequence[sample_request.Request],
  default_size: tuple[int, int],
  batch: int,
  previews: bool = False,
) -> offload_choice.Workload:
  """Returns a Workload that no batch of some requests exceeds.

  Args:
    requests: that were checked.
    default_size: (height, width) in px of the model.
    batch: images on each device, at most.
    previews: whether images are decoded while the steps are taken.
  """
  sizes = [size_of(request, default_size) for request in requests]
  tiles = [request.tile for request in requests]
  return offload_choice.Workload(
    size=max(sizes, key=lambda size: size[0] * size[1]),
    batch=batch,
    branches=max(map(count_branches, requests)),
    chunks=LONG if any(r.long_prompts for r in requests) else 1,
    tile=None if None in tiles else max(tiles),
    encodes=any(r.image is not None for r in requests),
    previews=previews,
  )


def size_of(
  request: sample_request.Request, default_size: tuple[int, int]
) -> tuple[int, int]:
  """Returns (height, width) in px of a request's image."""
  size = request.height, request.width
  if request.image is not None:
    with Image.open(request.image) as image:
      default_size = init_images.own_size(image, size, request.image)
  return init_images.fill_size(size, default_size)


def count_branches(request: sample_request.Request) -> int:
  """Returns the rows of the UNet that a request takes."""
  plan = prompt_plan.make_plan(
    prompt_plan.prompts_of(request), request, request.steps
  )
  parts = max(len(stage.positive) for stage in plan.stages)
  return parts + (request.guidance_scale > 1)
