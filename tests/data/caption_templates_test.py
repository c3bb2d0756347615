"""Templates stand for captions that images lack, drawn for each pass."""

import collections

import pytest

from configs import textual_inversion
from sdxl_jax.data import caption_templates

TEMPLATES = ('a photo of <new>', 'a painting of <new>', '<new>')


def test_a_caption_that_is_there_stays():
  for example in ({'caption': 'a fox'}, {'moments': 0}):
    assert caption_templates.fill(example, TEMPLATES, [0]) is example
  empty = {'caption': '', 'name': 'x'}
  assert caption_templates.fill(empty, (), [0]) is empty
  found = caption_templates.fill(empty, TEMPLATES, [0])
  assert found['caption'] in TEMPLATES and found['name'] == 'x'
  assert empty['caption'] == ''


def test_each_is_as_likely_and_decided_by_the_seed():
  draw = [
    caption_templates.fill({'caption': ''}, TEMPLATES, [0, 9, i])['caption']
    for i in range(3000)
  ]
  counts = collections.Counter(draw)
  assert all(900 < counts[text] < 1100 for text in TEMPLATES)
  again = caption_templates.fill({'caption': ''}, TEMPLATES, [0, 9, 17])
  assert again['caption'] == draw[17]


@pytest.mark.parametrize('kind', ['', 'style', 'pivotal'])
def test_the_word_of_a_config_is_filled_in(kind):
  config = textual_inversion.get_config(kind)
  found = caption_templates.of_config(config)
  assert len(found) == len(config.data.templates) > 5
  assert all('<new>' in text and '{}' not in text for text in found)
