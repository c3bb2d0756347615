"""Tags of files in prompts, and what other programs would fill in."""

import warnings

import pytest

from sdxl_jax.text import prompt_tags
from sdxl_jax.text.prompt_tags import Lora


@pytest.mark.parametrize(
  'prompt, text, loras',
  [
    ('a fox', 'a fox', ()),
    ('a fox <lora:foo:0.8>, snow', 'a fox, snow', (Lora('foo', 0.8),)),
    ('<lora:foo>a', 'a', (Lora('foo'),)),
    ('a<lora:foo>b', 'ab', (Lora('foo'),)),
    ('a  <lora:foo>  b', 'a  b', (Lora('foo'),)),
    ('<lora:d: unet = 0.5 >', '', (Lora('d', 0.5),)),
    ('a <LoRA: my style v1.2 : -1 > b', 'a b', (Lora('my style v1.2', -1.0),)),
    ('<lora:a:1><lora:b:.5>x', 'x', (Lora('a'), Lora('b', 0.5))),
    ('<lyco:c:0.7:0.7>', '', (Lora('c', 0.7),)),
    ('<lora:d:te=0.5:unet=0.5>', '', (Lora('d', 0.5),)),
    ('a <b> <c:d> <3', 'a <b> <c:d> <3', ()),
    ('<hypernet:e:1> a', ' a', ()),
  ],
)
def test_take_loras(prompt, text, loras):
  assert prompt_tags.take_loras(prompt) == (text, loras)


@pytest.mark.parametrize('weight', [1.0, -0.5, 0.1 + 0.2, 1e-7, 1e22])
def test_a_tag_has_all_digits(weight):
  lora = Lora('a b', weight)
  assert prompt_tags.take_loras(lora.tag) == ('', (lora,))
  assert Lora('a').tag == '<lora:a:1>'


@pytest.mark.parametrize(
  'prompt, message',
  [
    ('<lora:>', 'has no name'),
    ('<lora:a:b>', "'b' is no weight"),
    ('<lora:a:1:0.5>', 'different weights for text encoders and UNet'),
    ('<lora:a:1:lbw=OUT>', "'lbw=OUT' is no weight"),
    ('<lora:a:1e999>', "'1e999' is too large for a weight"),
    ('<lora:a:1:1:1>', "'1' is no weight"),
  ],
)
def test_tags_that_cannot_be_followed(prompt, message):
  with pytest.raises(ValueError, match=message):
    prompt_tags.take_loras(prompt)


def test_what_is_lost_is_named():
  with pytest.warns() as caught:
    assert prompt_tags.without_tags('a <lora:b:0.5> <hypernet:c:1>') == 'a'
  messages = [str(w.message) for w in caught]
  assert len(messages) == 2
  assert '<lora:b:0.5> is left out' in messages[0]
  assert 'hypernetworks are not implemented' in messages[1]


@pytest.mark.parametrize(
  'prompt, syntax, messages',
  [
    ('a __colour__ fox', None, ["'__colour__'"]),
    ('a {red|blue} fox', 'a1111', ["'{red|blue}'"]),
    ('a (red:1.2) fox', None, ['pass --weighted_prompts']),
    ('a BREAK b', None, ["'BREAK' in"]),
    ('a [b:c:3]', None, ["'[b:c:3]' in"]),
    ('a [b|c] BREAK d', 'comfyui', ['--prompt_syntax=a1111']),
    ('CATS AND DOGS', None, []),
    ('a [b] (c:1) d: [e]', 'comfyui', []),
    ('a (red:1.2) BREAK [b|c]', 'a1111', []),
    (r'a \(red:1.2\) (fox) at 12:30 my__name', None, []),
  ],
)
def test_what_is_read_as_words_is_named(prompt, syntax, messages):
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    prompt_tags.warn_of_text(prompt, syntax)
  assert len(caught) == len(messages)
  for warning, message in zip(caught, messages):
    assert message in str(warning.message)


def test_unknown_embeddings():
  prompt = 'embedding:neg, (Embedding:x) (embedding:Known:1.2) embedding:a.b.'
  found = prompt_tags.unknown_embeddings(prompt, {'known', 'a.b'})
  assert found == ['embedding:neg']
