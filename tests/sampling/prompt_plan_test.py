"""Which texts are encoded, for which steps."""

import warnings

import numpy as np
import pytest

from sdxl_jax.sampling import prompt_plan
from sdxl_jax.sampling.settings import SampleSettings

WEIGHTED = SampleSettings(weighted_prompts=True)


def plan(*texts, settings=WEIGHTED, steps=10):
  texts = [text if text is None else [*text] for text in texts]
  return prompt_plan.make_plan(prompt_plan.Prompts(*texts), settings, steps)


def stages(found):
  return [
    (s.begin, [b.texts for b in s.positive], s.negative.texts)
    for s in found.stages
  ]


def test_prompts_that_do_not_change():
  for settings in (WEIGHTED, SampleSettings()):
    found = plan(['a', 'b'], settings=settings)
    assert stages(found) == [(0, [('a', 'b')], ('', ''))]
    assert not found.has_negative and found.weights is None
  assert plan(['a'], ['']).has_negative


def test_stages_begin_where_any_text_changes():
  found = plan(['[a:b:3]', 'c'], ['x', '[y:0.5]'], None, ['z', '[z|]'], steps=6)
  assert stages(found) == [
    *((i, [('a', 'c')], ('x', '')) for i in range(3)),
    *((i, [('b', 'c')], ('x', 'y')) for i in range(3, 6)),
  ]
  twos = [stage.negative.texts_2 for stage in found.stages]
  assert twos == [('z', 'z'), ('z', '')] * 3
  assert len(found.branches) == 2 + 4


@pytest.mark.parametrize(
  'settings',
  [
    SampleSettings(),
    SampleSettings(weighted_prompts=True, prompt_syntax='comfyui'),
  ],
)
def test_other_syntaxes_have_no_stages(settings):
  text = '[a:b:3] AND [c|d]'
  assert stages(plan([text], settings=settings)) == [(0, [(text,)], ('',))]


def test_parts():
  found = plan(['a AND [b|c]:0.5', 'd :2 AND e'], ['n', 'm'], steps=2)
  assert stages(found) == [
    (0, [('a', 'd'), ('b', 'e')], ('n', 'm')),
    (1, [('a', 'd'), ('c', 'e')], ('n', 'm')),
  ]
  np.testing.assert_array_equal(found.weights, np.float32([[1, 0.5], [2, 1]]))
  for texts, message in (
    ([['a', 'b AND c']], 'some images combine 1 and some 2 texts of prompt'),
    ([['a AND b'], None, ['c']], 'combine different prompts by AND'),
  ):
    with pytest.raises(ValueError, match=message):
      plan(*texts)
  with pytest.warns(match='AND in the negative prompt .* is read as a word'):
    assert plan(['a'], ['b AND c']).weights is None


def test_tags_are_taken_out():
  with pytest.warns(match='<lora:x:0.5> is left out'):
    found = plan(['a <lora:x:0.5>'], settings=SampleSettings())
  assert stages(found) == [(0, [('a',)], ('',))]
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    plan(['a <b>'])
