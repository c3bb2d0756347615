"""Twenty pictures of one thing, to teach with configs/tiny.py:lora.

  python -m tests.benchmarks.one_object --output PICTURES

An elephant on each of the backgrounds of `scenes` but those of LORA_UNSEEN, at
different places and sizes, with captions in metadata.jsonl.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from configs import tiny
from sdxl_jax.data import images
from sdxl_jax.data.sources import emoji, synthetic

COUNT, SIDE, THING = 20, 80, 'elephant'


def make(i):
  """(picture, caption) of number i."""
  (thing,) = (o for o in emoji.OBJECTS if o.noun == THING)
  colours = [c for c in synthetic.COLOURS if c not in tiny.LORA_UNSEEN]
  every = [synthetic.Combination('one', (thing,), colour) for colour in colours]
  every = [combination for combination in every if combination.visible]
  shown = every[i % len(every)]
  rng = np.random.default_rng(i)
  return synthetic.paint(shown, SIDE, SIDE, rng, 0.3), synthetic.caption(
    shown, rng
  )


def main(argv):
  del argv
  folder, lines = pathlib.Path(flags.FLAGS.output), []
  for i in range(COUNT):
    picture, text = make(i)
    images.save(folder / f'{i:02d}.png', picture)
    lines.append(json.dumps({'file_name': f'{i:02d}.png', 'text': text}))
  (folder / 'metadata.jsonl').write_text('\n'.join(lines) + '\n')
  print(f'wrote {COUNT} pictures to {folder}')


if __name__ == '__main__':
  flags.DEFINE_string('output', None, 'folder to write to')
  flags.mark_flags_as_required(['output'])
  app.run(main)
