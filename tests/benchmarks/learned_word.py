"""Compares samples of a learned word with those of the words it lies between.

  python -m tests.benchmarks.one_object --output FROGS --noun frog \
    --word '<new>'
  python -m sdxl_jax.train --config configs/tiny.py:words --workdir WORD \
    --config.init_from=TINY --config.data.folder.path=FROGS
  python -m tests.benchmarks.learned_word --weights WORD --noun frog \
    --output grid.png

TINY is a run of configs/tiny.py. On each of eight backgrounds the word, the
noun of the images that it was trained on, and the one that it began with are
sampled from the same noise. Of each sample of the word, the root mean square
difference in [-1, 1] to both others is printed; the grid has a row for each.
"""

import numpy as np
from absl import app, flags, logging

from sdxl_jax import sample
from sdxl_jax.data import figures, images
from sdxl_jax.data.sources import synthetic

BACKGROUNDS = list(synthetic.COLOURS)[:8]


def prompts(noun):
  """The captions of a noun, or a word, on all backgrounds."""
  article = 'an' if noun[0] in 'aeiou' else 'a'
  return [f'{article} {noun} on a {c} background' for c in BACKGROUNDS]


def difference(a, b):
  """The root mean square difference of each image, [n]."""
  return np.sqrt(np.square(a - b).mean(axis=(1, 2, 3)))


def main(argv):
  del argv
  args = flags.FLAGS
  logging.set_verbosity(logging.WARNING)  # orbax logs much
  texts = [
    text for n in (args.word, args.noun, args.start) for text in prompts(n)
  ]
  samples, _ = sample.generate(
    sample.load(args.weights),
    texts,
    seeds=[*range(len(BACKGROUNDS))] * 3,
    steps=args.steps,
    guidance_scale=args.guidance_scale,
  )
  word, noun, start = np.split(np.asarray(samples), 3)
  to_noun, to_start = difference(word, noun), difference(word, start)
  print(
    f'{args.word}: nearer to {args.noun} than to {args.start} in '
    f'{(to_noun < to_start).sum()} of {len(word)}; mean difference '
    f'{to_noun.mean():.2f} to {args.noun}, {to_start.mean():.2f} to '
    f'{args.start}; {difference(noun, start).mean():.2f} between these'
  )
  images.save(
    args.output, figures.grid(samples, len(BACKGROUNDS), texts, zoom=3)
  )


if __name__ == '__main__':
  flags.DEFINE_string('weights', None, 'workdir that learned the word')
  flags.DEFINE_string('word', '<new>', 'its token_string')
  flags.DEFINE_string('noun', 'frog', 'what its images show')
  flags.DEFINE_string('start', 'apple', 'its init_word')
  flags.DEFINE_string('output', 'grid.png', 'PNG to write')
  flags.DEFINE_integer('steps', 12, 'sampler steps')
  flags.DEFINE_float('guidance_scale', 3.0, 'guidance')
  flags.mark_flag_as_required('weights')
  app.run(main)
