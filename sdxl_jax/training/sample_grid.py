"""What a run can do so far, as one picture."""

import math

from sdxl_jax.checkpoints import loading
from sdxl_jax.data import dataset, images
from sdxl_jax.distributed import multihost
from sdxl_jax.evaluation import reconstruction
from sdxl_jax.sampling import generation, pipelines
from sdxl_jax.text import tokenizer
from sdxl_jax.training import tasks

SHOWN, ROWS = 8, 4  # pictures that an autoencoder is shown by, and rows of them


def make_draw(config, nets, frozen, source):
  """draw({net: EMA parameters}) -> uint8 [h, w, 3], the same in every process.

  Args:
    config: of the run.
    nets: its nets.
    frozen: {net: parameters} of those that are not trained.
    source: its data.
  """
  # So few rows are not shared out, and no fused kernel runs on half a mesh.
  nets = nets.replace(attention='xla')
  if config.task == 'diffusion':
    return lambda ema: draw_prompts(config, nets, frozen | ema)
  pictures = first_pictures(config, source) if config.samples.every else None
  return lambda ema: draw_reconstructions(config, nets, ema, pictures)


def draw_prompts(config, nets, params):
  """A grid of the config's prompts."""
  c = config.samples
  pictures, _ = generation.generate(
    pipelines.make_pipeline(config, nets, nets.ready(params)),
    list(c.prompts),
    size=c.size,
    steps=c.steps,
    sampler=c.sampler,
    guidance_scale=c.guidance_scale,
  )
  columns = math.ceil(len(pictures) ** 0.5)
  return images.grid(pictures, columns, list(c.prompts), c.zoom)


def draw_reconstructions(config, nets, params, pictures):
  """Pictures, what becomes of them, and what differs."""
  made, _ = reconstruction.reconstruct(nets, params, pictures)
  cells = reconstruction.comparison(pictures, multihost.fetch(made))
  columns = 3 * math.ceil(len(pictures) / ROWS)
  return images.grid(cells, columns, zoom=config.samples.zoom)


def first_pictures(config, source):
  """The first ones of the schedule, as training sees them."""
  count = min(SHOWN, config.global_batch_size // tasks.micro_batches_of(config))
  tokenize = tokenizer.load(loading.base_weights(config.init_from))
  batches = dataset.make_batches(config, source, tokenize, range(count))
  _, batch = next(batches)
  batches.close()
  return batch['image']
