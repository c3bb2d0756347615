"""The source `scenes`: endless captioned images with exact ground truth.

A scene is one to three objects on a plain background, and a function of (seed,
index) alone. A share of the backgrounds of each layout of objects is held out,
so that prompts exist whose parts occur in training, but never together.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdxl_jax.data.sources import emoji, indexed

# Tones that are rare in Twemoji, well apart from each other.
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
TALL = (12 / 5, 2, 16 / 9, 3 / 2, 4 / 3, 5 / 4)
WIDE = (4 / 5, 3 / 4, 2 / 3, 9 / 16, 1 / 2, 5 / 12)
ASPECTS = (*TALL, 1, *WIDE)
# By their number of objects; single objects come twice as often.
LAYOUTS = {1: ('one', 'one'), 2: ('beside', 'above', 'two'), 3: ('three',)}
KINDS = {'beside': 2, 'above': 2}  # different objects; one in other layouts
BORDER = 0.08  # share of each side without objects, so that crops cut none


class Combination(NamedTuple):
  """The content of an image; objects in order from the left or from above."""

  layout: str
  objects: tuple[emoji.Object, ...]
  colour: str

  def digest(self) -> bytes:
    """Returns bytes that put combinations into a fixed random order."""
    nouns = sorted(o.noun for o in self.objects)
    text = ', '.join([self.layout, *nouns, self.colour])
    return hashlib.sha256(text.encode()).digest()

  @property
  def visible(self) -> bool:
    """Whether all objects stand out from the background."""
    return all(
      emoji.visible(o.emoji, COLOURS[self.colour]) for o in self.objects
    )


class Prompt(NamedTuple):
  """A caption with its background (RGB in 0..255), nouns and layout."""

  caption: str
  background: tuple[int, int, int]
  objects: tuple[str, ...]
  layout: str


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """The objects, colours and layouts that combinations are made of."""

  objects: int = 64  # the first of emoji.OBJECTS
  colours: int = 10  # the first of COLOURS
  max_objects: int = 3  # in one image
  max_kinds: int = 2  # different objects in one image
  held_out: float = 0.1  # share of the colours of each object, not in training

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
  def layouts(self) -> list[str]:
    """Names of layouts, each repeated by its frequency."""
    layouts = [m for n in range(self.max_objects) for m in LAYOUTS[n + 1]]
    return [m for m in layouts if KINDS.get(m, 1) <= self.max_kinds]

  def holds_out(self, combination: Combination) -> bool:
    """Checks whether a combination is excluded from training.

    For each layout of objects the same share of the colours is, rounded.
    """
    colours = list(COLOURS)[: self.colours]
    every = [combination._replace(colour=colour) for colour in colours]
    visible = sorted((c for c in every if c.visible), key=Combination.digest)
    return visible.index(combination) < round(self.held_out * len(visible))

  def draw(self, rng: np.random.Generator, held_out: bool) -> Combination:
    """Samples a combination, either of training or held out."""
    layouts = self.layouts
    colours = list(COLOURS)[: self.colours]
    for _ in range(1000):
      layout = layouts[rng.integers(len(layouts))]
      picks = rng.choice(self.objects, KINDS.get(layout, 1), replace=False)
      colour = colours[rng.integers(self.colours)]
      objects = tuple(emoji.OBJECTS[i] for i in picks)
      combination = Combination(layout, objects, colour)
      if combination.visible and self.holds_out(combination) == held_out:
        return combination
    raise ValueError(
      f'scenes: {self} is too small: it has no combination that is '
      f'{"held out" if held_out else "left to train on"}; allow more objects '
      'or colours'
    )


def check_range(name: str, value, least, limit) -> None:
  """Raises ValueError for a setting outside of its range."""
  if not least <= value <= limit:
    raise ValueError(
      f'scenes: {name} = {value} is outside {least}..{limit}; set a value '
      'inside'
    )


def caption(combination: Combination, rng: np.random.Generator) -> str:
  """Writes the exact sentence; a relation from either end, or with 'and'."""
  layout, objects, colour = combination
  names = [emoji.with_article(o.noun) for o in objects]
  if layout == 'one':
    phrase = names[0]
  elif layout in ('two', 'three'):
    phrase = f'{layout} {objects[0].plural}'
  else:
    forward, back = {
      'beside': ('to the left of', 'to the right of'),
      'above': ('above', 'below'),
    }[layout]
    phrases = [
      f'{names[0]} {forward} {names[1]}',
      f'{names[1]} {back} {names[0]}',
    ]
    if layout == 'beside':
      phrases.append(f'{names[0]} and {names[1]}')
    phrase = phrases[rng.integers(len(phrases))]
  return f'{phrase} on {emoji.with_article(colour)} background'


def arrange(layout: str, h: float, w: float) -> tuple[list[tuple], tuple]:
  """Arranges objects in a frame of h x w px.

  Returns boxes (top, left, bottom, right) in cells, and a cell's (h, w) in px.
  """
  row = [(0, i, 1, i + 1) for i in range(3 if layout == 'three' else 2)]
  if layout == 'one':
    return [(0, 0, 1, 1)], (h, w)
  if layout == 'three' and 2 / 3 < h / w < 3 / 2:
    return [(0, 0.5, 1, 1.5), (1, 0, 2, 1), (1, 1, 2, 2)], (h / 2, w / 2)
  if layout == 'beside' or (layout != 'above' and w >= h):
    # At most 0.7 as high as wide, so that beside never looks like above.
    return row, (min(h, 0.7 * w), w / len(row))
  column = [(i, 0, i + 1, 1) for i in range(len(row))]
  return column, (h / len(row), min(w, 0.7 * h))


def paint(combination, h, w, rng, jitter=1.0) -> np.ndarray:
  """Renders uint8 [h, w, 3]; at jitter 0 the objects are centred."""
  layout, objects, colour = combination
  canvas = Image.new('RGB', (w, h), COLOURS[colour])
  inner_h, inner_w = (1 - 2 * BORDER) * h, (1 - 2 * BORDER) * w
  boxes, (cell_h, cell_w) = arrange(layout, inner_h, inner_w)
  free_h = inner_h - cell_h * max(box[2] for box in boxes)
  free_w = inner_w - cell_w * max(box[3] for box in boxes)

  def position():
    return 0.5 + jitter * (rng.random() - 0.5)

  # A random position of the frame, and a random size of all objects.
  frame_top = BORDER * h + position() * free_h
  frame_left = BORDER * w + position() * free_w
  shrink = 0.35 if layout == 'one' else 0.15
  size = (0.95 - shrink * jitter * rng.random()) * min(cell_h, cell_w)
  # A random position of each object in its cell.
  for item, (top, left, _, _) in zip(objects * len(boxes), boxes):
    sprite = emoji.sprite(item.emoji, max(1, math.floor(size)))
    y = frame_top + top * cell_h + position() * (cell_h - sprite.height)
    x = frame_left + left * cell_w + position() * (cell_w - sprite.width)
    canvas.paste(sprite, (round(x), round(y)), sprite)
  return np.asarray(canvas)


def blemish(image: np.ndarray, std, rng) -> np.ndarray:
  """Adds Gaussian noise of a standard deviation in 0..255."""
  noise = std * rng.standard_normal(image.shape)
  return np.clip(image + noise, 0, 255).astype(np.uint8)


def draw_sizes(resolution, length, seed, aspects, scales) -> np.ndarray:
  """Samples int32 [length, 2]: aspects of a table, a log-uniform scale."""
  u, v = np.random.default_rng(seed).random((length, 2)).T
  low, high = np.log(scales)
  side = resolution * np.exp(low + (high - low) * u)
  aspect = np.asarray(aspects)[(v * len(aspects)).astype(int)]
  sizes = np.stack([side * np.sqrt(aspect), side / np.sqrt(aspect)], 1)
  return sizes.round().astype(np.int32)


class Scenes(indexed.GeneratedSource):
  """Captioned images of objects on plain backgrounds, rendered on request.

  Args:
    resolution: square root of the area in px at scale 1; sizes vary around it.
    length: number of scenes; any number costs the same.
    seed: of all scenes.
    aspects: heights / widths to sample from.
    scales: smallest and largest side, as multiples of `resolution`.
    jitter: 0..1, freedom of objects in position and size.
    scored: whether images get noise, and an aesthetic_score by its strength,
      from 2, strong, to 7, none.
    **vocabulary: fields of `Vocabulary`.

  Raises:
    ValueError: for a setting outside of its range.
  """

  def __init__(
    self,
    resolution: int | float = 1024,
    length: int = 1_000_000,
    seed: int = 0,
    aspects: Sequence[float] = ASPECTS,
    scales: Sequence[float] = (0.75, 3.0),
    jitter: int | float = 1.0,
    scored: bool = False,
    **vocabulary: int | float,
  ):
    settings = [resolution, seed, [*aspects], [*scales], jitter, scored]
    super().__init__(f'scene {{}} of seed {seed}', [settings, vocabulary])
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

  def __getitem__(self, index: int) -> indexed.Example:
    h, w = (int(n) for n in self.sizes[index])
    rng = np.random.default_rng([self.seed, index])
    combination = self.vocabulary.draw(rng, held_out=False)
    example = {
      'caption': caption(combination, rng),
      'image': paint(combination, h, w, rng, self.jitter),
      'original_size': (h, w),
      'flippable': False,  # captions name left and right
      'name': self.name(index),
    }
    if self.scored:
      example['aesthetic_score'] = score = rng.uniform(2, 7)
      example['image'] = blemish(example['image'], 8 * (7 - score), rng)
    return example


def held_out_prompts(n, vocabulary: Vocabulary, seed=0) -> list[Prompt]:
  """Samples n different prompts whose combinations are in no training scene.

  Raises:
    ValueError: if the vocabulary has fewer held-out combinations.
  """
  rng = np.random.default_rng(seed)
  prompts = {}
  # Combinations repeat, and rare ones may be missed by so many samples.
  for _ in range(20 * n + 50):
    combination = vocabulary.draw(rng, held_out=True)
    layout, objects, colour = combination
    nouns = tuple(o.noun for o in objects)
    prompt = Prompt(caption(combination, rng), COLOURS[colour], nouns, layout)
    prompts.setdefault(combination, prompt)
    if len(prompts) == n:
      return list(prompts.values())
  raise ValueError(
    f'scenes: {n} held-out prompts are needed, but {vocabulary} gave only '
    f'{len(prompts)}; choose fewer or enlarge the vocabulary'
  )
