"""Scores a model trained on scenes, from the pixels of its samples.

  python -m tests.benchmarks.scene_score --weights DIR --output grid.png

The prompts are those of the run's config, then others whose combinations were
never trained on. `--refiner DIR` lets a refiner finish the samples. Three
scores are reported:

background  The share of samples whose background colour is the one of the
            prompt: of the vocabulary's colours the nearest to the median colour
            of the border. Beside it stands how clean the background is: the
            median over samples of the standard deviation, of 255, along the
            border.
object      The share of samples that are nearer to a rendering of their prompt
            than to the same scene with any other object of the vocabulary.
sharp       The share of samples that are nearer to the rendering of their
            prompt than to a blur of it, a blob of the object's colours. Beside
            it stands the median distance to the rendering.

The distance is the root mean square difference, of 255, of the blurred colours
from the prompt's background, the least over small shifts and scales. Chance is
one in the number of objects. The grid marks samples that are wrong.

The grid of the README is
  python -m tests.benchmarks.scene_score --weights DIR --count 8 --columns 4 \\
    --zoom 5 --output .github/grid.png
"""

import collections
import functools
import itertools
import json
import pathlib
from typing import NamedTuple

import numpy as np
from absl import app, flags, logging
from PIL import Image, ImageFilter

from sdxl_jax import sample
from sdxl_jax.data import figures, images
from sdxl_jax.data.sources import emoji, synthetic
from sdxl_jax.sampling import pipelines

BORDER = 3  # px at each side, kept free of objects by the scenes
# Sides of the renderings that a sample is compared with, as multiples of its
# own, and the px by which each of them moves: a crop and the rounding of sizes
# change both by less.
SCALES = (0.9, 1.0, 1.1)
SHIFT = 3
# Standard deviations of Gaussian blurs, as shares of the shorter side: of what
# is compared, and of a blob, in which an object's parts are lost.
BLUR, BLOB = 0.025, 0.1
RENDERED = 160  # px, the shorter side of a rendering before it is resized


class ObjectScore(NamedTuple):
  """What `score_objects` finds for each sample."""

  nearest: list[tuple[str, ...]]  # nouns of the nearest rendering
  right: np.ndarray  # bool [n], whether that is the one of the prompt
  sharp: np.ndarray  # bool [n], whether a blob of its colours is farther
  distance: np.ndarray  # [n], of 255, to the rendering of the prompt itself


def border(image):
  """[n, 3] pixels along the four sides."""
  inside = np.zeros(image.shape[:2], bool)
  inside[BORDER:-BORDER, BORDER:-BORDER] = True
  return image[~inside].astype(np.float64)


def score_backgrounds(samples, prompts, colours):
  """Compares border colours with the first so many colours of the vocabulary.

  Returns:
    bool [n], whether each is right, and [n] standard deviations, of 255.
  """
  table = np.array(list(synthetic.COLOURS.values())[:colours], np.float64)
  right, spread = [], []
  for image, prompt in zip(samples, prompts):
    pixels = border(image)
    middle = np.median(pixels, axis=0)
    found = np.abs(table - middle).sum(axis=1).argmin()
    right.append(tuple(table[found]) == prompt.background)
    spread.append(pixels.std(axis=0).mean())
  return np.array(right), np.array(spread)


def alternatives(nouns, vocabulary):
  """Tuples of nouns: the given one first, then those with one noun replaced."""
  every = [thing.noun for thing in emoji.OBJECTS[: vocabulary.objects]]
  found = [nouns]
  for i, other in itertools.product(range(len(nouns)), every):
    if other not in nouns:
      found.append((*nouns[:i], other, *nouns[i + 1 :]))
  return found


@functools.lru_cache(maxsize=512)
def render(layout, nouns, background, size):
  """A scene, uint8 [h, w, 3], as large as a sample of this size is at most."""
  table = {thing.noun: thing for thing in emoji.OBJECTS}
  colours = {rgb: name for name, rgb in synthetic.COLOURS.items()}
  things = tuple(table[noun] for noun in nouns)
  combination = synthetic.Combination(layout, things, colours[background])
  h, w = (RENDERED * side // min(size) for side in size)
  return synthetic.paint(combination, h, w, np.random.default_rng(0), jitter=0)


def foreground(image, background, blur):
  """The blurred difference from the background, float32 [h, w, 3]."""
  blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur))
  return np.asarray(blurred, np.float32) - np.float32(background)


def place(scene, background, size):
  """A scene of any size in the middle of a canvas of its background."""
  canvas = Image.new('RGB', size[::-1], background)
  left, top = (
    (outer - inner) // 2 for outer, inner in zip(canvas.size, scene.size)
  )
  canvas.paste(scene, (left, top))
  return np.asarray(canvas)


def distance(image, scene, background, blur=BLUR):
  """The least distance, of 255, over scales and shifts of the scene.

  Args:
    image: uint8 [h, w, 3], a sample.
    scene: uint8 [H, W, 3], a rendering.
    background: of both, RGB in 0..255.
    blur: of the scene, standard deviation as share of the image's shorter side;
      the image's own is BLUR.
  """
  size, side = image.shape[:2], min(image.shape[:2])
  pixels = foreground(image, background, BLUR * side)
  larger = tuple(length + 2 * SHIFT for length in size)
  scene, squares = Image.fromarray(scene), []
  for factor in SCALES:
    scaled = images.resize(scene, tuple(round(factor * n) for n in size))
    canvas = place(scaled, background, larger)
    canvas = foreground(canvas, background, blur * side)
    # [2 SHIFT + 1, 2 SHIFT + 1, h, w, 3], all shifts.
    windows = np.lib.stride_tricks.sliding_window_view(canvas, size, (0, 1))
    moved = windows.transpose(0, 1, 3, 4, 2)
    squares.append(np.square(moved - pixels).mean(axis=(2, 3, 4)).min())
  return np.sqrt(min(squares))


def score_objects(samples, prompts, vocabulary):
  """Compares samples with renderings of all objects, see the module.

  Args:
    samples: uint8 [n, h, w, 3].
    prompts: synthetic.Prompt of each.
    vocabulary: synthetic.Vocabulary, whose objects are compared with.

  Returns:
    ObjectScore.
  """
  nearest, own, sharp = [], [], []
  for image, prompt in zip(samples, prompts):
    choices = alternatives(prompt.objects, vocabulary)
    rendered = [
      render(prompt.layout, nouns, prompt.background, image.shape[:2])
      for nouns in choices
    ]
    found = [distance(image, scene, prompt.background) for scene in rendered]
    nearest.append(choices[np.argmin(found)])
    own.append(found[0])
    blob = distance(image, rendered[0], prompt.background, BLOB)
    sharp.append(found[0] < blob)
  right = [n == prompt.objects for n, prompt in zip(nearest, prompts)]
  return ObjectScore(nearest, np.array(right), np.array(sharp), np.array(own))


def confusions(prompts, nearest):
  """A line for each object: how often it was right, and what it was instead."""
  found = collections.defaultdict(collections.Counter)
  for prompt, nouns in zip(prompts, nearest):
    found[' and '.join(prompt.objects)][' and '.join(nouns)] += 1
  lines = []
  for noun, counts in sorted(found.items()):
    total = counts.total()
    line = f'  {noun}: {counts.pop(noun, 0)} of {total}'
    others = ', '.join(f'{n} {other}' for other, n in counts.most_common())
    lines.append(f'{line}; else {others}' if others else line)
  return lines


def choose_prompts(count, captions, vocabulary):
  """`count` held-out prompts: those with these captions first, then others.

  Args:
    count: how many.
    captions: strings, such as a config's samples.prompts; those that are not
      held-out prompts of the vocabulary are left out.
    vocabulary: synthetic.Vocabulary.

  Raises:
    ValueError: if the vocabulary has fewer held-out combinations.
  """
  first = []
  for text in captions:
    prompt = parse(text, vocabulary)
    if prompt:
      first.append(prompt)
  known = {prompt.caption for prompt in first}
  others = synthetic.held_out_prompts(count, vocabulary)
  others = [prompt for prompt in others if prompt.caption not in known]
  return [*first, *others][:count]


def parse(text, vocabulary):
  """The held-out prompt with a caption, or None; of one kind of object only."""
  rng = np.random.default_rng(0)
  things = emoji.OBJECTS[: vocabulary.objects]
  colours = list(synthetic.COLOURS)[: vocabulary.colours]
  layouts = [n for n in vocabulary.layouts if synthetic.KINDS.get(n, 1) == 1]
  for layout, thing, colour in itertools.product(layouts, things, colours):
    combination = synthetic.Combination(layout, (thing,), colour)
    if synthetic.caption(combination, rng) != text:
      continue
    if combination.visible and vocabulary.holds_out(combination):
      rgb = synthetic.COLOURS[colour]
      return synthetic.Prompt(text, rgb, (thing.noun,), layout)
  return None


def mark(prompt, is_background_right, nearest):
  """The lines under a sample: its prompt, and what is wrong with it."""
  faults = []
  if not is_background_right:
    faults.append('background')
  if nearest != prompt.objects:
    faults.append(f'looks like {" and ".join(nearest)}')
  verdict = f'WRONG: {", ".join(faults)}' if faults else ''
  return f'{prompt.caption}\n{verdict}'


def main(argv):
  del argv
  args = flags.FLAGS
  logging.set_verbosity(logging.WARNING)  # orbax logs much
  workdir = pathlib.Path(args.weights)
  config = json.loads((workdir / 'config.json').read_text())
  vocabulary = synthetic.Scenes(**config['data']['scenes']).vocabulary
  prompts = choose_prompts(args.count, config['samples']['prompts'], vocabulary)

  sampled, _ = sample.generate(
    pipelines.load(workdir),
    [prompt.caption for prompt in prompts],
    steps=args.steps,
    sampler=args.sampler,
    guidance_scale=args.guidance_scale,
    refiner=pipelines.load(args.refiner) if args.refiner else None,
  )
  samples = images.to_uint8(sampled)

  right, spread = score_backgrounds(samples, prompts, vocabulary.colours)
  found = score_objects(samples, prompts, vocabulary)
  captions = [mark(*verdict) for verdict in zip(prompts, right, found.nearest)]
  grid = figures.grid(samples, args.columns, captions, args.zoom)
  images.save(args.output, grid)
  print(f'{args.count} held-out prompts; grid in {args.output}')
  print(
    f'background right in {right.mean():.1%}, median standard deviation '
    f'{np.median(spread):.1f} of 255'
  )
  print(
    f'object right in {found.right.mean():.1%}, chance is 1 in '
    f'{vocabulary.objects}:'
  )
  print('\n'.join(confusions(prompts, found.nearest)))
  print(
    f'sharp in {found.sharp.mean():.1%}, median distance '
    f'{np.median(found.distance):.1f} of 255'
  )


if __name__ == '__main__':
  flags.DEFINE_string('weights', None, 'workdir trained on scenes')
  flags.DEFINE_string('refiner', None, 'its workdir')
  flags.DEFINE_string('output', 'grid.png', 'PNG to write')
  flags.DEFINE_integer('count', 64, 'prompts')
  flags.DEFINE_integer('columns', 8, 'samples in a row of the grid')
  flags.DEFINE_integer('zoom', 4, 'factor by which the grid repeats pixels')
  flags.DEFINE_integer('steps', 25, 'sampler steps')
  flags.DEFINE_string('sampler', 'euler', 'sampler')
  flags.DEFINE_float('guidance_scale', 3.0, 'guidance')
  flags.mark_flag_as_required('weights')
  app.run(main)
