"""Scores a model trained on scenes, from the pixels of what it draws.

  python -m tests.benchmarks.scene_score --weights DIR --output grid.png

`--refiner DIR` lets a refiner finish them.
Draws prompts whose combinations training never showed, and reports how many
have the background colour asked for, and how clean it is: the median over
pictures of the standard deviation, of 255, along the border. Background colour
is the nearest of the vocabulary to the median colour of the border.
"""

import json
import pathlib

import numpy as np
from absl import app, flags, logging

from sdxl_jax import sample
from sdxl_jax.data import images
from sdxl_jax.data.sources import synthetic
from sdxl_jax.sampling import pipelines

BORDER = 3  # px at each side, kept free of objects by the scenes


def border(picture):
  """[n, 3] pixels along the four sides."""
  inside = np.zeros(picture.shape[:2], bool)
  inside[BORDER:-BORDER, BORDER:-BORDER] = True
  return picture[~inside].astype(np.float64)


def score(pictures, prompts, colours):
  """(share with the right background, median std of it), and each's verdict."""
  names = list(synthetic.COLOURS)[:colours]
  table = np.array([synthetic.COLOURS[name] for name in names], np.float64)
  right, spread = [], []
  for picture, prompt in zip(pictures, prompts):
    pixels = border(picture)
    middle = np.median(pixels, axis=0)
    found = np.abs(table - middle).sum(axis=1).argmin()
    right.append(tuple(table[found]) == prompt.background)
    spread.append(pixels.std(axis=0).mean())
  return np.mean(right), np.median(spread), right


def main(argv):
  del argv
  args = flags.FLAGS
  logging.set_verbosity(logging.WARNING)  # orbax tells much
  workdir = pathlib.Path(args.weights)
  config = json.loads((workdir / 'config.json').read_text())
  words = synthetic.Scenes(**config['data']['scenes']).vocabulary
  prompts = synthetic.held_out_prompts(args.count, words)
  drawn, _ = sample.generate(
    pipelines.load(workdir),
    [p.caption for p in prompts],
    steps=args.steps,
    sampler=args.sampler,
    guidance_scale=args.guidance_scale,
    refiner=pipelines.load(args.refiner) if args.refiner else None,
  )
  pictures = images.to_uint8(drawn)
  share, spread, right = score(pictures, prompts, words.colours)
  captions = [
    ('' if good else 'WRONG ') + p.caption for p, good in zip(prompts, right)
  ]
  grid = images.grid(pictures, 8, captions, zoom=4)
  images.save(args.output, grid)
  print(
    f'{args.count} held-out prompts: background right in {share:.1%}, its '
    f'median standard deviation {spread:.1f} of 255; grid in {args.output}'
  )


if __name__ == '__main__':
  flags.DEFINE_string('weights', None, 'workdir trained on scenes')
  flags.DEFINE_string('refiner', None, 'its workdir')
  flags.DEFINE_string('output', 'grid.png', 'PNG to write')
  flags.DEFINE_integer('count', 64, 'prompts')
  flags.DEFINE_integer('steps', 25, 'sampler steps')
  flags.DEFINE_string('sampler', 'euler', 'sampler')
  flags.DEFINE_float('guidance_scale', 3.0, 'guidance')
  flags.mark_flag_as_required('weights')
  app.run(main)
