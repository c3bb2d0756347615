"""Renders twenty images of one object, for configs/tiny.py:lora and :words.

  python -m tests.benchmarks.one_object --output IMAGES

An elephant, or another --noun, on each background of the synthetic scenes
except LORA_UNSEEN, at different positions and sizes, with captions in
metadata.jsonl; these have --word in place of the noun.
"""

import json
import pathlib
import re

import numpy as np
from absl import app, flags

from configs import tiny
from sdxl_jax.data import images
from sdxl_jax.data.sources import emoji, synthetic

COUNT = 20
SIDE = 80  # px


def make(i, noun, word):
  """Renders image number i; returns (image, caption)."""
  (thing,) = (o for o in emoji.OBJECTS if o.noun == noun)
  colours = [c for c in synthetic.COLOURS if c not in tiny.LORA_UNSEEN]
  scenes = [synthetic.Combination('one', (thing,), c) for c in colours]
  scenes = [scene for scene in scenes if scene.visible]
  scene = scenes[i % len(scenes)]
  rng = np.random.default_rng(i)
  image = synthetic.paint(scene, SIDE, SIDE, rng, 0.3)
  text = synthetic.caption(scene, rng)
  if word:
    text = re.sub(rf'\b(a|an) {noun}\b', f'a {word}', text)
  return image, text


def write(folder):
  """Writes the images and their captions to a folder."""
  lines = []
  for i in range(COUNT):
    image, text = make(i, flags.FLAGS.noun, flags.FLAGS.word)
    images.save(folder / f'{i:02d}.png', image)
    lines.append(json.dumps({'file_name': f'{i:02d}.png', 'text': text}))
  (folder / 'metadata.jsonl').write_text('\n'.join(lines) + '\n')


def main(argv):
  del argv
  folder = pathlib.Path(flags.FLAGS.output)
  write(folder)
  print(f'wrote {COUNT} images to {folder}')


if __name__ == '__main__':
  flags.DEFINE_string('output', None, 'folder to write to')
  flags.DEFINE_string('noun', 'elephant', 'of the object')
  flags.DEFINE_string('word', '', 'in the captions, in place of the noun')
  flags.mark_flags_as_required(['output'])
  app.run(main)
