"""The prompts of a run's samples that come from a file, with their settings."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import config_dict

from sdxl_jax.models import sdxl
from sdxl_jax.sampling import (
  generation,
  pipelines,
  prompts_file,
  request_batches,
  request_checks,
  sample_request,
  settings,
)
from sdxl_jax.sampling.located import Located, naming

Requests = tuple[sample_request.Request, ...]
WHITE = 1.0


def load(
  config: config_dict.ConfigDict,
  model: sdxl.SDXL,
  say: Callable[[str], Any],
) -> Requests:
  """Loads the requests of config.samples.prompts_file, (): there is none.

  A line goes before config.samples. Without a seed, line i has the seed i.

  Args:
    config: of the run.
    model: of the run.
    say: prints a line for the user.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: for a line that cannot be sampled, with its number.
  """
  c = config.samples
  if not c.prompts_file or config.task != 'diffusion' or not c.every:
    return ()
  try:
    lines = prompts_file.read(c.prompts_file)
  except FileNotFoundError:
    raise FileNotFoundError(
      f'config.samples.prompts_file is {c.prompts_file!r}: no such file'
    ) from None
  common = {name: c[name] for name in c if name in settings.FIELDS}
  common['height'], common['width'] = c.size
  located = []
  for i, (location, fields) in enumerate(lines):
    with naming(location):
      request = sample_request.Request(**({'seed': i} | common | fields))
      located.append(Located(location, request))
  # All lines are checked now, with a pipeline that has no parameters yet.
  nets = dict.fromkeys(config.trained, {})
  pipeline = pipelines.make_pipeline(config, model, nets)
  for line in (
    *request_checks.before_loading(located, {}),
    *request_checks.after_loading(located, pipeline, None),
  ):
    say(f'warning: {line}')
  return tuple(request for _, request in located)


def generate(
  pipeline: pipelines.Pipeline, requests: Requests
) -> Float[np.ndarray, 'b H W 3']:
  """Generates an image for each request, in [-1, 1].

  Images of different sizes get a white margin on the right and below.
  """
  samples = [
    image for batch in generated(pipeline, requests) for image in batch
  ]
  height, width = np.max([image.shape[:2] for image in samples], axis=0)
  return np.stack([with_margin(image, height, width) for image in samples])


def generated(
  pipeline: pipelines.Pipeline, requests: Requests
) -> Iterator[Sequence[np.ndarray]]:
  """Yields the images of consecutive requests that share their settings."""
  for batch in request_batches.batches(
    list(requests), len(requests), pipeline.tokenize, pipeline.text_chunks
  ):
    kwargs = sample_request.to_generate_kwargs(batch, pipeline.size)
    yield generation.generate(pipeline, **kwargs)[0]


def with_margin(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns an image on a white canvas of another size."""
  canvas = np.full((height, width, 3), WHITE, image.dtype)
  canvas[: image.shape[0], : image.shape[1]] = image
  return canvas
