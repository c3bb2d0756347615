"""Trains each kind of adapter on twenty images: samples and file sizes.

  python -m tests.benchmarks.adapter_kinds --weights TINY --folder NEW

TINY is a run of configs/tiny.py, which was trained without elephants. Each kind
trains on twenty elephants, is written as a LoRA file, and generates the same
prompts from the same noise: one row each of NEW/grid.png, the base first.
Prints rank, parameters, kB of the file, the loss at the end, and seconds for a
step. Half an hour on two cores.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from configs import tiny
from sdxl_jax import convert, train
from sdxl_jax.data import figures, images
from sdxl_jax.sampling import generation, pipelines
from sdxl_jax.weights import safetensors_file
from tests.benchmarks import one_object

LINEAR = r'(to_[qkv]|to_out_0|net_0/proj|net_2|proj_in|proj_out)'
LOCON = r'(to_[qkv]|to_out_0|net_0/proj|net_2|proj_in|proj_out|conv1|conv2)'
# {kind: (layers of the UNet, other fields of a group)}
KINDS = {
  'lora': (LINEAR, dict(rank=8)),
  'locon': (LOCON, dict(rank=8)),
  'dora': (LINEAR, dict(rank=8, dora_wd=True)),
  'loha': (LINEAR, dict(rank=4, algo='loha')),
  'lokr': (LINEAR, dict(rank=4, algo='lokr')),
  'full': (LINEAR, dict(rank=1, algo='full')),
}
PROMPTS = (
  *(f'an elephant on a {colour} background' for colour in tiny.LORA_UNSEEN),
  *tiny.PROMPTS[:3],  # objects that the base knows
)


def get_config(kind, weights, folder, steps):
  """Returns the config of the run of a kind."""
  config = tiny.get_config('lora')
  config.unlock()
  layers, fields = KINDS[kind]
  group = dict(layers=f'unet/.*/{layers}', alpha=float(fields['rank']))
  config.lora = {kind: group | fields}
  config.init_from = str(weights)
  config.data.folder.path = str(folder / 'images')
  config.total_steps = steps
  config.samples.every = 0
  config.checkpoint.every = steps
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 4)
  return config.lock()


def row(pipeline, text):
  """Samples of the prompts, with a caption under the first one."""
  samples, _ = generation.generate(
    pipeline, list(PROMPTS), size=(40, 40), steps=25, guidance_scale=3.0
  )
  return list(samples), [text] + [''] * (len(samples) - 1)


def measure(kind, weights, folder, steps):
  """Trains a kind, unless it is trained, and writes its file."""
  workdir, path = folder / kind, folder / f'{kind}.safetensors'
  config = get_config(kind, weights, folder, steps)
  if not path.exists():
    train.train(config, workdir)
    source = convert.Source(workdir)
    convert.convert_lora(source, convert.Target(path, 'lora'))
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  tensors = safetensors_file.load(path).tensors
  return {
    'kind': kind,
    'rank': config.lora[kind].rank,
    'parameters': sum(int(np.prod(t.shape)) for t in tensors.values()),
    'kB': path.stat().st_size / 1e3,
    'loss': last['loss'],
    's/step': last['step_s'],
  }


def main(argv):
  del argv
  folder = pathlib.Path(flags.FLAGS.folder)
  one_object.write(folder / 'images')
  cells, captions = row(pipelines.load(flags.FLAGS.weights), 'base')
  for kind in flags.FLAGS.kinds:
    found = measure(kind, flags.FLAGS.weights, folder, flags.FLAGS.steps)
    print(json.dumps(found), flush=True)
    path = folder / f'{kind}.safetensors'
    pipeline = pipelines.load(flags.FLAGS.weights, loras=[str(path)])
    text = f'{kind}, {found["kB"]:.0f} kB'
    more, texts = row(pipeline, text)
    cells, captions = cells + more, captions + texts
    grid = figures.grid(cells, len(PROMPTS), captions, zoom=3)
    images.save(folder / 'grid.png', grid)
  print(f'wrote {folder / "grid.png"}')


if __name__ == '__main__':
  flags.DEFINE_string('weights', None, 'a run of configs/tiny.py')
  flags.DEFINE_string('folder', None, 'to write to')
  flags.DEFINE_integer('steps', 200, 'of each run')
  flags.DEFINE_list('kinds', list(KINDS), 'kinds to train')
  flags.mark_flags_as_required(['weights', 'folder'])
  app.run(main)
