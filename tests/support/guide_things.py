"""What the guides' words in capitals stand for: small weights, runs, images."""

import json

import jax
import numpy as np
from PIL import Image

from sdxl_jax.checkpoints import loading, orbax_checkpoint, source_configs
from sdxl_jax.models import from_config
from sdxl_jax.training import tasks
from tests.support import (
  control_nets,
  conversions,
  datasets,
  golden_sets,
  guides,
  learned_words,
  small_configs,
)

TINY = golden_sets.SETS[0] / 'tiny'
# Weights that a guide downloads, and the tiny model that takes their place.
DOWNLOADED = {'SDXL': 'base', 'TURBO': 'base', 'REFINER': 'refiner'}
# Stages of the recipe, and the weights that take the place of their runs.
STAGES = {'stage0': 'SDXL', 'stage3': 'SDXL', 'refiner': 'REFINER'}


def make(folder):
  """Makes all of them in a folder, under the names that the guides use."""
  for name, model in DOWNLOADED.items():
    source = TINY / model
    conversions.run(source, folder / name, 'diffusers', variant='fp16')
  for name, union in {'CANNY': False, 'UNION': True}.items():
    config = control_nets.make_config(union)
    params = control_nets.random_params(config)
    control_nets.write(folder / name, config, params, variant='fp16')
  single = folder / 'sd_xl_base_1.0.safetensors'
  conversions.run(TINY / 'base', single, 'single_file')
  unet = TINY / 'base' / 'unet' / 'diffusion_pytorch_model.safetensors'
  (folder / 'unet.safetensors').symlink_to(unet)
  for name, lora in {'style': 'kohya', 'style2': 'peft'}.items():
    file = TINY / 'lora' / f'{lora}.safetensors'
    (folder / f'{name}.safetensors').symlink_to(file)
  learned_words.save(folder / 'style_emb.safetensors', learned_words.vectors(2))
  save_run(folder / 'RUN', 'stage3', folder / 'SDXL')
  save_run(folder / 'LORA', 'lora', folder / 'SDXL')
  save_run(folder / 'WORD', 'textual_inversion', folder / 'SDXL')
  for stage, weights in STAGES.items():
    (folder / 'RUN' / stage).symlink_to(folder / weights)
  write_datasets(folder)
  write_images(folder)


def save_run(workdir, name, weights):
  """Writes the checkpoint of a run that has done no step.

  Args:
    workdir: of the run.
    name: of its config, see small_configs.
    weights: that it starts from.
  """
  config = small_configs.get_config(name)
  config.update(init_from=str(weights))
  config = source_configs.with_latent_scaling(config, config.init_from)
  model = from_config.make_model(config)
  names = [net for net in model.configs if net != 'lora']
  params = loading.load_params(config.init_from, model, names)
  init = jax.jit(tasks.make_task(config, model).init)
  state = init(jax.random.key(0), params)
  checkpoints = orbax_checkpoint.Checkpoints(workdir)
  checkpoints.save(1, state, {'batches': 0}, config.to_dict())
  checkpoints.close()


def write_datasets(folder):
  """Writes the same images and captions for every kind of source."""
  examples = [datasets.example(i, (64, 48)) for i in range(8)]
  datasets.write_folder(folder / 'SCORED', examples)
  datasets.write_folder(folder / 'OTHERS', examples)
  datasets.write_webdataset(folder / 'SHARDS', examples, per_tar=4)
  for number, path in enumerate(sorted((folder / 'SHARDS').iterdir())):
    path.rename(path.with_name(f'{number:05d}.tar'))
  datasets.write_parquet(folder / 'PARQUET', examples)
  built = datasets.write_tfds(folder / 'built', examples)['dataset']
  (folder / 'TFDS').symlink_to(built)


def write_images(folder):
  """Writes the files that the guides' own examples of tables name."""
  (table,) = guides.json_blocks('sdxl_jax/data/README.md')
  (folder / 'IMAGES' / 'more').mkdir(parents=True)
  (folder / 'IMAGES' / 'metadata.jsonl').write_text(table)
  for line in table.splitlines():
    path = folder / 'IMAGES' / json.loads(line)['file_name']
    Image.fromarray(datasets.ramp(64, 48)).save(path)
  (prompts,) = guides.json_blocks('sdxl_jax/sampling/README.md')
  (folder / 'prompts.jsonl').write_text(prompts)
  Image.fromarray(datasets.ramp(64, 64)).save(folder / 'photo.png')
  for name in ('edges', 'pose', 'depth'):
    Image.fromarray(datasets.ramp(64, 64)).save(folder / f'{name}.png')
  mask = np.zeros((64, 64), np.uint8)
  mask[:, 32:] = 255
  Image.fromarray(mask).save(folder / 'mask.png')
