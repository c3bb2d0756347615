"""Tests which values are captions, as datasets store them."""

import numpy as np
import pytest

from sdxl_jax.data.sources import captions, indexed


@pytest.mark.parametrize(
  'value, text, count',
  [
    (' a dog\n', 'a dog', 1),
    (b'a dog', 'a dog', 1),
    ('a café'.encode('utf-16'), 'a café', 1),
    (np.str_('a dog'), 'a dog', 1),
    (np.array(['a', 'b'], object), 'a', 2),
    (['a', 'b', 'c'], 'a', 3),  # COCO, Hugging Face
    ([None, '', b'b'], 'b', 1),
    ([['a', 'b'], ['c']], 'a', 3),
    ((3, 'b'), 'b', 1),
    ('\ufeff a dog', 'a dog', 1),  # a mark twice in one file
  ],
)
def test_captions(value, text, count):
  caption = captions.parse(value)
  assert caption == captions.Caption(text, indexed.USABLE, '', count)


@pytest.mark.parametrize(
  'value',
  [None, '', ' \n', b'', [], [None, ''], float('nan'), np.float32('nan')],
)
def test_no_caption(value):
  assert captions.parse(value).problem == indexed.NO_CAPTION


@pytest.mark.parametrize(
  'value, problem, words',
  [
    (3, indexed.BAD_CAPTION, '3 is int, not text'),
    (np.int64(3), indexed.BAD_CAPTION, 'names of labels'),
    (True, indexed.BAD_CAPTION, 'bool'),
    ([0.5], indexed.BAD_CAPTION, 'float'),
    ({'en': 'a', 'fr': 'b'}, indexed.BAD_CAPTION, "['en', 'fr']"),
    ([{'raw': 'a'}], indexed.BAD_CAPTION, 'with a dot'),
    ('a' * 1_000_001, indexed.BAD_CAPTION, '1,000,001 characters'),
    (b'a' * 4_000_001, indexed.BAD_CAPTION, 'over 4,000,000 bytes'),
    (b'caf\xe9', indexed.BAD_ENCODING, 'byte 3 (0xe9), in line 1'),
    (b'a\0 \0', indexed.BAD_ENCODING, 'NUL'),
    ('a\ud83d', indexed.BAD_ENCODING, 'surrogate'),
    ('a\0b', indexed.BAD_ENCODING, 'NUL'),  # which JSON can hold
    ([[[[[[[[['a']]]]]]]]], indexed.BAD_CAPTION, 'write one list'),
  ],
)
def test_refused(value, problem, words):
  caption = captions.parse(value)
  assert (caption.text, caption.problem) == ('', problem)
  assert words in caption.detail


def test_fields_of_structs():
  fields = {
    'text': 'a',
    'caption.en': 'b',
    'caption': {'en': 'c', 'more': {'de': 'd'}},
    'captions': [{'text': 'e'}, {'text': 'f'}, {}],
  }
  for name, expected in (
    ('text', 'a'),
    ('caption.en', 'b'),  # a name with a dot comes first
    ('caption.more.de', 'd'),
    ('captions.text', ['e', 'f', None]),
    ('captions.no', [None] * 3),
    ('no', None),
    ('text.en', None),
  ):
    assert captions.look_up(fields, name) == expected
