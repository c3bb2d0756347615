"""The source `scenes`: endless captioned pictures, their truth known exactly.

A scene is one to three objects on a plain background. A scene depends on (seed,
index) alone. A layout of objects is never drawn on a share of the backgrounds,
so that prompts exist whose parts were seen but never together.
"""

import dataclasses
import hashlib
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdxl_jax.data.sources import emoji

# Tones that Twemoji itself uses little, well apart from each other.
COLOURS = {
  'white': (255, 255, 255),
  'blue': (25, 60, 200),
  'yellow': (255, 235, 90),
  'red': (190, 15, 25),
  'green': (15, 120, 60),
  'pink': (255, 165, 205),
  'black': (12, 12, 12),
  'orange': (250, 125, 10),
  'purple': (105, 35, 150),
  'grey': (128, 128, 128),
}
# Height : width, from a tall banner to a wide one.
ASPECTS = (
  *(12 / 5, 2, 16 / 9, 3 / 2, 4 / 3, 5 / 4, 1),
  *(4 / 5, 3 / 4, 2 / 3, 9 / 16, 1 / 2, 5 / 12),
)
# By the number of objects they need; single objects come twice as often.
LAYOUTS = {1: ('one', 'one'), 2: ('beside', 'above', 'two'), 3: ('three',)}
KINDS = {'beside': 2, 'above': 2}  # of objects; one in other layouts
BORDER = 0.08  # of each side, free of objects so that small crops cut none


class Combination(NamedTuple):
  """What a picture shows; objects in order from the left or from above."""

  layout: str
  objects: tuple[emoji.Object, ...]
  colour: str

  def digest(self):
    """Bytes that put combinations into a random order, the same always."""
    nouns = sorted(o.noun for o in self.objects)
    text = ', '.join([self.layout, *nouns, self.colour])
    return hashlib.sha256(text.encode()).digest()

  @property
  def visible(self):
    return all(
      emoji.visible(o.emoji, COLOURS[self.colour]) for o in self.objects
    )


class Prompt(NamedTuple):
  """A caption with its truth: background as RGB in 0..255, nouns, layout."""

  caption: str
  background: tuple[int, int, int]
  objects: tuple[str, ...]
  layout: str


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The first so many objects and colours, and layouts up to max_objects."""

  objects: int = 64  # at most len(objects.OBJECTS)
  colours: int = 10
  max_objects: int = 3
  max_kinds: int = 2  # of objects in one picture
  held_out: float = 0.1  # share of the colours of each object, never drawn

  def __post_init__(self):
    limits = {
      'objects': (2, len(emoji.OBJECTS)),
      'colours': (1, len(COLOURS)),
      'max_objects': (1, max(LAYOUTS)),
      'max_kinds': (1, 2),
      'held_out': (0, 0.9),
    }
    for name, (least, limit) in limits.items():
      check_range(name, getattr(self, name), least, limit)

  @property
  def layouts(self):
    """Names of layouts, each as often as it is to come."""
    found = [m for n in range(self.max_objects) for m in LAYOUTS[n + 1]]
    return [m for m in found if KINDS.get(m, 1) <= self.max_kinds]

  def holds_out(self, combination):
    """Whether it is never drawn.

    Each layout of objects misses the same share of the colours, rounded.
    """
    colours = list(COLOURS)[: self.colours]
    every = [combination._replace(colour=colour) for colour in colours]
    fit = sorted((c for c in every if c.visible), key=Combination.digest)
    return fit.index(combination) < round(self.held_out * len(fit))

  def draw(self, rng, held_out):
    """A random combination, held out or not as asked."""
    layouts = self.layouts
    colours = list(COLOURS)[: self.colours]
    for _ in range(1000):
      layout = layouts[rng.integers(len(layouts))]
      picks = rng.choice(self.objects, KINDS.get(layout, 1), replace=False)
      colour = colours[rng.integers(self.colours)]
      found = Combination(
        layout, tuple(emoji.OBJECTS[i] for i in picks), colour
      )
      if found.visible and self.holds_out(found) == held_out:
        return found
    raise ValueError(
      f'scenes: {self} is too small: it has no combination that is '
      f'{"held out" if held_out else "left to train on"}; allow more objects '
      'or colours'
    )


def check_range(name, value, least, limit):
  if not least <= value <= limit:
    raise ValueError(
      f'scenes: {name} = {value} is outside {least}..{limit}; set a value '
      'inside'
    )


def caption(combination, rng):
  """The exact sentence; relations are worded from either end, or by 'and'."""
  layout, things, colour = combination
  names = [emoji.with_article(o.noun) for o in things]
  if layout == 'one':
    phrase = names[0]
  elif layout in ('two', 'three'):
    phrase = f'{layout} {things[0].plural}'
  else:
    forward, back = {
      'beside': ('to the left of', 'to the right of'),
      'above': ('above', 'below'),
    }[layout]
    phrase = (
      f'{names[0]} {forward} {names[1]}',
      f'{names[1]} {back} {names[0]}',
      f'{names[0]} and {names[1]}',
    )[rng.integers(3 if layout == 'beside' else 2)]
  return f'{phrase} on {emoji.with_article(colour)} background'


def arrange(layout, h, w):
  """Unit boxes (top, left, bottom, right) in a frame, and the frame (h, w)."""
  row = [(0, i, 1, i + 1) for i in range(3 if layout == 'three' else 2)]
  if layout == 'one':
    return [(0, 0, 1, 1)], (h, w)
  if layout == 'three' and 2 / 3 < h / w < 3 / 2:
    return [(0, 0.5, 1, 1.5), (1, 0, 2, 1), (1, 1, 2, 2)], (h / 2, w / 2)
  if layout == 'beside' or (layout != 'above' and w >= h):
    # A low frame, so that beside never looks like above.
    return row, (min(h, 0.7 * w), w / len(row))
  column = [(i, 0, i + 1, 1) for i in range(len(row))]
  return column, (h / len(row), min(w, 0.7 * h))


def paint(combination, h, w, rng, jitter=1.0):
  """The picture, uint8 [h, w, 3]; at jitter 0 the objects stand centred."""
  layout, things, colour = combination
  canvas = Image.new('RGB', (w, h), COLOURS[colour])
  inner_h, inner_w = (1 - 2 * BORDER) * h, (1 - 2 * BORDER) * w
  boxes, (cell_h, cell_w) = arrange(layout, inner_h, inner_w)
  free_h = inner_h - cell_h * max(box[2] for box in boxes)
  free_w = inner_w - cell_w * max(box[3] for box in boxes)
  place = lambda: 0.5 + jitter * (rng.random() - 0.5)
  frame_top = BORDER * h + place() * free_h
  frame_left = BORDER * w + place() * free_w
  shrink = 0.35 if layout == 'one' else 0.15
  size = (0.95 - shrink * jitter * rng.random()) * min(cell_h, cell_w)
  for thing, (top, left, _, _) in zip(things * len(boxes), boxes):
    sprite = emoji.sprite(thing.emoji, max(1, math.floor(size)))
    y = frame_top + top * cell_h + place() * (cell_h - sprite.height)
    x = frame_left + left * cell_w + place() * (cell_w - sprite.width)
    canvas.paste(sprite, (round(x), round(y)), sprite)
  return np.asarray(canvas)


def blemish(image, std, rng):
  """The picture with noise of a standard deviation in 0..255."""
  noise = std * rng.standard_normal(image.shape)
  return np.clip(image + noise, 0, 255).astype(np.uint8)


def draw_sizes(resolution, length, seed, aspects, scales):
  """int32 [length, 2]: aspect from the table, log-uniform scale."""
  u, v = np.random.default_rng(seed).random((length, 2)).T
  low, high = np.log(scales)
  side = resolution * np.exp(low + (high - low) * u)
  aspect = np.asarray(aspects)[(v * len(aspects)).astype(int)]
  sizes = np.stack([side * np.sqrt(aspect), side / np.sqrt(aspect)], 1)
  return sizes.round().astype(np.int32)


class Scenes:
  """Captioned pictures of objects on plain backgrounds.

  Args:
    resolution: square root of the area in px at scale 1; sizes vary around it.
    length: how many scenes; any number, since they are drawn when asked for.
    seed: of the whole series.
    aspects: heights / widths to draw from.
    scales: smallest and largest side, as multiples of `resolution`.
    jitter: 0..1, how freely objects move and vary in size.
    scored: whether each picture is noisy to a degree that an aesthetic_score
      tells: from 2, much, to 7, not at all.
    vocabulary: fields of `Vocabulary`.
  """

  def __init__(
    self,
    resolution=1024,
    length=1_000_000,
    seed=0,
    aspects=ASPECTS,
    scales=(0.75, 3.0),
    jitter=1.0,
    scored=False,
    **vocabulary,
  ):
    check_range('jitter', jitter, 0, 1)
    self.seed, self.jitter, self.scored = seed, jitter, scored
    self.vocabulary = Vocabulary(**vocabulary)
    self.sizes = draw_sizes(resolution, length, seed, aspects, scales)
    if self.sizes.min(initial=16) < 16:
      raise ValueError(
        f'scenes: resolution = {resolution} gives sides of '
        f'{self.sizes.min()} px, under the limit of 16; raise resolution or '
        'the first of scales'
      )

  def __len__(self):
    return len(self.sizes)

  def __getitem__(self, index):
    h, w = (int(n) for n in self.sizes[index])
    rng = np.random.default_rng([self.seed, index])
    combination = self.vocabulary.draw(rng, held_out=False)
    example = {
      'caption': caption(combination, rng),
      'image': paint(combination, h, w, rng, self.jitter),
      'original_size': (h, w),
      'flippable': False,  # captions name sides
      'name': f'scene {index} of seed {self.seed}',
    }
    if self.scored:
      example['aesthetic_score'] = score = rng.uniform(2, 7)
      example['image'] = blemish(example['image'], 8 * (7 - score), rng)
    return example


def held_out_prompts(n, vocabulary, seed=0):
  """n different prompts whose combinations no scene ever shows.

  Args:
    n: how many.
    vocabulary: Vocabulary of the training scenes.
    seed: of the draw.

  Raises:
    ValueError: if so small a vocabulary has fewer held-out combinations.
  """
  rng = np.random.default_rng(seed)
  found = {}
  for _ in range(20 * n + 50):
    combination = vocabulary.draw(rng, held_out=True)
    layout, things, colour = combination
    nouns = tuple(o.noun for o in things)
    found.setdefault(
      combination,
      Prompt(caption(combination, rng), COLOURS[colour], nouns, layout),
    )
    if len(found) == n:
      return list(found.values())
  raise ValueError(
    f'scenes: {n} held-out prompts asked for, but {vocabulary} gave only '
    f'{len(found)}; ask for fewer or enlarge the vocabulary'
  )
