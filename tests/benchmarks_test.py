"""The scores of `scene_score`, against images whose scores are known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from configs import tiny
from sdxl_jax.data import transforms
from sdxl_jax.data.sources import emoji, synthetic
from tests.benchmarks import scene_score

CHANCE = 1 / 9


@pytest.fixture(scope='module')
def vocabulary():
  return synthetic.Scenes(**tiny.get_config().data.scenes).vocabulary


@pytest.fixture(scope='module')
def prompts(vocabulary):
  return scene_score.choose_prompts(36, tiny.PROMPTS, vocabulary)


def rendered(prompts, shown=None, side=52, aspect=0.97, size=(40, 40)):
  """Scenes as training crops them, of the prompts' or of `shown` objects."""
  found = []
  for i, prompt in enumerate(prompts):
    nouns = shown[i] if shown else prompt.objects
    scene = paint(prompt, nouns, round(side * aspect), side, i)
    row = transforms.transform(
      {'image': scene, 'original_size': scene.shape[:2], 'caption': ''},
      size,
      [i],
    )
    found.append(np.uint8(np.rint(127.5 * (row['image'] + 1))))
  return np.stack(found)


def paint(prompt, nouns, h, w, seed):
  table = {thing.noun: thing for thing in emoji.OBJECTS}
  things = tuple(table[noun] for noun in nouns)
  colour = prompt.caption.split()[-2]
  combination = synthetic.Combination(prompt.layout, things, colour)
  return synthetic.paint(combination, h, w, np.random.default_rng(seed), 0.0)


def noisy(samples, std):
  noise = std * np.random.default_rng(0).normal(size=samples.shape)
  return np.uint8(np.clip(samples + noise, 0, 255))


def blurred(samples, radius):
  blur = ImageFilter.GaussianBlur(radius)
  return np.stack([Image.fromarray(x).filter(blur) for x in samples])


def right(samples, prompts, vocabulary):
  return scene_score.score_objects(samples, prompts, vocabulary).right.mean()


@pytest.mark.parametrize('side, aspect', [(30, 0.94), (40, 1.0), (77, 0.97)])
def test_scenes_of_any_size_score_all(prompts, vocabulary, side, aspect):
  samples = rendered(prompts, side=side, aspect=aspect)
  found = scene_score.score_objects(samples, prompts, vocabulary)
  assert found.right.all() and found.sharp.all()
  assert np.median(found.distance) < 10
  backgrounds, spread = scene_score.score_backgrounds(samples, prompts, 10)
  assert backgrounds.all() and np.median(spread) < 2


def test_scenes_of_another_shape_score_all(prompts, vocabulary):
  samples = rendered(prompts, aspect=1.5, size=(48, 32))
  assert right(samples, prompts, vocabulary) == 1


def test_other_objects_score_nothing(prompts, vocabulary):
  every = [thing.noun for thing in emoji.OBJECTS[: vocabulary.objects]]
  shown = [
    (every[(every.index(prompt.objects[0]) + 1 + i % 8) % len(every)],)
    for i, prompt in enumerate(prompts)
  ]
  found = scene_score.score_objects(
    rendered(prompts, shown), prompts, vocabulary
  )
  assert found.nearest == shown and not found.right.any()


def test_blobs_are_not_sharp(prompts, vocabulary):
  clean = rendered(prompts)
  for samples, least, most in (
    (noisy(clean, 40), 0.95, 1.0),
    (blurred(clean, 1), 0.95, 1.0),
    (blurred(clean, 3), 0.0, 0.05),
  ):
    found = scene_score.score_objects(samples, prompts, vocabulary)
    assert least <= found.sharp.mean() <= most


@pytest.mark.parametrize(
  'spoil',
  [
    lambda x: noisy(x, 40),
    lambda x: blurred(x, 2),
    lambda x: noisy(blurred(x, 1.5), 25),
    lambda x: np.roll(x, (2, -2), (1, 2)),
  ],
  ids=['noise', 'blur', 'both', 'shift'],
)
def test_spoilt_scenes_still_score_high(prompts, vocabulary, spoil):
  samples = spoil(rendered(prompts))
  assert right(samples, prompts, vocabulary) >= 0.9


def test_what_shows_no_object_scores_chance(prompts, vocabulary):
  rng = np.random.default_rng(0)
  noise = np.uint8(rng.integers(256, size=(len(prompts), 40, 40, 3)))
  assert right(noise, prompts, vocabulary) <= 3 * CHANCE
  plain = np.zeros_like(noise)
  for image, prompt in zip(plain, prompts):
    image[:] = prompt.background
  assert right(plain, prompts, vocabulary) <= 3 * CHANCE


def test_other_backgrounds_score_nothing(prompts):
  samples = rendered(prompts)
  others = [*prompts[1:], prompts[0]]
  same = [a.background == b.background for a, b in zip(prompts, others)]
  found, _ = scene_score.score_backgrounds(samples, others, 10)
  assert found.tolist() == same and not all(same)


def test_two_kinds_are_compared_one_by_one():
  vocabulary = synthetic.Vocabulary(4, 4, 2)
  choices = scene_score.alternatives(('apple', 'fox'), vocabulary)
  assert choices[0] == ('apple', 'fox')
  assert set(choices[1:]) == {
    ('frog', 'fox'),
    ('octopus', 'fox'),
    ('apple', 'frog'),
    ('apple', 'octopus'),
  }


def test_prompts_of_the_config_come_first(prompts, vocabulary):
  assert tuple(p.caption for p in prompts[: len(tiny.PROMPTS)]) == tiny.PROMPTS
  assert len({p.caption for p in prompts}) == len(prompts) == 36
  assert set(prompts) <= set(synthetic.held_out_prompts(64, vocabulary))


def test_lines_of_confusions(prompts):
  first = prompts[:1]
  lines = scene_score.confusions(2 * first, [first[0].objects, ('fox',)])
  assert lines == ['  apple: 1 of 2; else 1 fox']
