"""The grid of samples, or of reconstructions, that a run writes regularly."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import config_dict

from sdxl_jax.data import dataset, figures
from sdxl_jax.distributed import multihost
from sdxl_jax.evaluation import reconstruction
from sdxl_jax.models import autoencoder_gan, sdxl
from sdxl_jax.sampling import finiteness, generation, pipelines, settings
from sdxl_jax.training import run_setup, sample_prompts, tasks

Grid = UInt8[np.ndarray, 'h w 3']

IMAGES, ROWS = 8, 4  # of the grid of reconstructions


@dataclasses.dataclass(frozen=True)
class SampleGrid:
  """Renders what the EMA parameters of a run generate or reconstruct."""

  config: config_dict.ConfigDict
  model: sdxl.SDXL | autoencoder_gan.AutoencoderGAN
  # {net: parameters} of the nets that are not trained, on the devices or in the
  # memory of their hosts.
  frozen: dict[str, Any]
  inputs: Float[np.ndarray, 'b h w c'] | None = None  # [-1, 1], to reconstruct
  requests: sample_prompts.Requests = ()  # in place of the config's prompts

  def render(self, ema_params: dict[str, Any]) -> Grid:
    """Returns the grid, the same in every process, given {net: parameters}.

    Raises:
      finiteness.NonFiniteError: for NaN or infinity in its images.
    """
    if self.config.task == 'diffusion':
      return self.render_samples(self.frozen | ema_params)
    return self.render_reconstructions(ema_params)

  def render_samples(self, params: dict[str, Any]) -> Grid:
    """Returns samples of the config's prompts, with the prompts as captions."""
    c = self.config.samples
    pipeline = pipelines.make_pipeline(
      self.config, self.model, self.model.ready(params)
    )
    if self.requests:
      samples = sample_prompts.generate(pipeline, self.requests)
      captions = [request.prompt for request in self.requests]
      return as_grid(samples, captions, c.zoom)
    # config.samples may hold any of the settings of sampling.
    chosen = {name: c[name] for name in c if name in settings.FIELDS}
    samples, _ = generation.generate(
      pipeline, list(c.prompts), size=c.size, **chosen
    )
    return as_grid(samples, list(c.prompts), c.zoom)

  def render_reconstructions(self, params: dict[str, Any]) -> Grid:
    """Returns images, their reconstructions and the differences."""
    reconstructed, _ = reconstruction.reconstruct(
      self.model, params, self.inputs
    )
    reconstructed = multihost.fetch(reconstructed)
    finiteness.check_reconstructions([reconstructed])
    cells = reconstruction.comparison(self.inputs, reconstructed)
    # Image, reconstruction and difference side by side.
    columns = 3 * math.ceil(len(self.inputs) / ROWS)
    return figures.grid(cells, columns, zoom=self.config.samples.zoom)


def as_grid(
  samples: Float[np.ndarray, 'b h w 3'], captions: list[str], zoom: int
) -> Grid:
  """Returns samples as a grid, as nearly square as their number allows."""
  columns = math.ceil(len(samples) ** 0.5)
  return figures.grid(samples, columns, captions, zoom)


def make_sample_grid(
  config: config_dict.ConfigDict,
  model: sdxl.SDXL | autoencoder_gan.AutoencoderGAN,
  frozen: dict[str, Any],
  source: Any,
  say: Callable[[str], Any] = print,
) -> SampleGrid:
  """Makes the SampleGrid of a run.

  Args:
    config: of the run.
    model: of the run.
    frozen: {net: parameters} of the nets that are not trained.
    source: of images, as data/ makes it; read for reconstructions only.
    say: prints a line for the user.

  Raises:
    ValueError, FileNotFoundError: see sample_prompts.load.
  """
  # The same images in every grid.
  inputs = None
  if config.task == 'autoencoder' and config.samples.every:
    inputs = first_images(config, source)
  # The grid has too few rows to divide over a mesh, so no fused kernel is used.
  model = model.replace(attention='xla')
  requests = sample_prompts.load(config, model, say)
  return SampleGrid(config, model, frozen, inputs, requests)


def first_images(
  config: config_dict.ConfigDict, source: Any
) -> Float[np.ndarray, 'b h w 3']:
  """Returns the first images of the schedule, as training crops them."""
  rows = range(min(IMAGES, tasks.micro_batch_size(config)))
  tokenize = run_setup.load_tokenizer(config)
  batches = dataset.make_batches(config, source, tokenize, rows)
  _, batch = next(batches)
  batches.close()
  return batch['image']
