"""Checks and warnings before the first image, and LoRAs of prompts."""

import pytest
from PIL import Image

from sdxl_jax.sampling import (
  init_images,
  pipelines,
  prompt_loras,
  request_checks,
  sample_request,
)
from sdxl_jax.sampling.located import Located
from sdxl_jax.weights.lora import lora_file
from tests.support import golden_sets


def located(*prompts, **options):
  return [
    Located(
      f'p.txt, line {i}', sample_request.Request(prompt=prompt, **options)
    )
    for i, prompt in enumerate(prompts, 1)
  ]


@pytest.mark.parametrize(
  'prompt, options, messages',
  [
    ('a fox', {}, []),
    ('a (fox:1.2)', {}, ["'(fox:1.2)' in the prompt", '--weighted_prompts']),
    ('a (fox:1.2) :)', {'weighted_prompts': True}, ["')' has no partner"]),
    ('[a:(b:1,2):3]', {'weighted_prompts': True}, ["'1,2' is no weight"]),
    ('a AND b :)', {'weighted_prompts': True}, ["')' has no partner"]),
    ('a <lora:b:0.5>', {}, ['<lora:b:0.5> is left out: pass the folder']),
    ('<hypernet:b:1>', {}, ['hypernetworks are not implemented']),
    (
      'a',
      {'negative_prompt': '<lora:b:1>'},
      ['<lora:b:1> is left out: it belongs into the prompt'],
    ),
  ],
)
def test_warnings_on_prompts(prompt, options, messages):
  lines = request_checks.before_loading(located(prompt, **options), {})
  assert len(lines) == bool(messages)
  for message in messages:
    assert lines[0].startswith('p.txt, line 1: ') and message in lines[0]


@pytest.mark.parametrize(
  'options, message',
  [
    (
      {'steps': 10**9, 'weighted_prompts': True},
      'steps is 10+; it must be at most',
    ),
    ({'width': 10**30}, 'width is 10+; it must be at most'),
    ({'original_size': (10**30, 8)}, r'original_size is \(10+, 8\) in px'),
    (
      {'guidance_scale': 1e31},
      r'guidance_scale is 1e\+31; it must be a number of less than 1e\+30',
    ),
    ({'sampler': 'euler', 'eta': 0.5}, 'eta is 0.5, but euler has none'),
    ({'image': ''}, 'image is empty: name a file'),
  ],
)
def test_values_that_no_model_can_take(options, message):
  with pytest.raises(ValueError, match=f'^p.txt, line 2: {message}'):
    request_checks.before_loading(
      [*located('a'), *located('[a|b]', '[a|b]', **options)[1:]], {}
    )


def test_each_image_is_read_once(tmp_path, monkeypatch):
  """Before and after weights are loaded, for all prompts and sizes."""
  Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
  reads, read = [], init_images.read
  monkeypatch.setattr(
    init_images, 'read', lambda path: reads.append(path) or read(path)
  )
  options = dict(image=str(tmp_path / 'a.png'), strength=1.0)
  asked = located('a', 'b', 'c', **options)
  assert not request_checks.before_loading(asked, {}) and len(reads) == 1
  base = pipelines.load(golden_sets.SETS[0] / 'tiny' / 'base')
  assert not request_checks.after_loading(asked, base, None)
  assert len(reads) == 2
  for more, kind, message in (
    (dict(image=str(tmp_path / 'b.png')), OSError, 'line 2: .*b.png'),
    (dict(mask='m.png'), ValueError, 'line 2: mask is given without an image'),
  ):
    with pytest.raises(kind, match=message):
      request_checks.before_loading(
        [asked[0], *located('a', 'b', **more)[1:]], {}
      )


def test_embeddings_that_are_not_loaded_are_named():
  base = pipelines.load(golden_sets.SETS[0] / 'tiny' / 'base')
  asked = located('a fox', 'embedding:neg', height=64, width=64)
  (line,) = request_checks.after_loading(asked, base, None)
  assert line.startswith("p.txt, line 2: 'embedding:neg' in the prompt")


def test_loras_are_the_same_in_all_requests(tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.safetensors').write_text('')
  both = '<lora:a:0.5> x <lora:b>', '<lora:b:1.0> y <lora:a:.5>'
  a, b = (tmp_path / f'{name}.safetensors' for name in 'ab')
  files = prompt_loras.common(located(*both), tmp_path)
  assert files == (f'{a}:0.5', f'{b}:1.0')
  assert prompt_loras.common(located(*both), None) == ()
  twice = located('<lora:a> <lora:a>', prompt_2='<lora:a> <lora:b>')
  files = prompt_loras.common(twice, tmp_path)
  assert files == (f'{a}:1.0', f'{a}:1.0', f'{b}:1.0')
  for prompts, message in (
    (['<lora:a>', 'x'], r'line 2 names the LoRAs \[\] and p.txt, line 1 '),
    (['<lora:a>', '<lora:c>'], "line 2: no LoRA file 'c'"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      prompt_loras.common(located(*prompts), tmp_path)
  # Flags have no location.
  flags = [Located('', sample_request.Request(prompt='<lora:c>'))]
  with pytest.raises(FileNotFoundError, match="^no LoRA file 'c'"):
    prompt_loras.common(flags, tmp_path)


def test_a_folder_of_loras_is_listed_once(tmp_path, monkeypatch):
  (tmp_path / 'a.safetensors').write_text('')
  calls, find = [], lora_file.find_by_name
  monkeypatch.setattr(
    lora_file, 'find_by_name', lambda *args: calls.append(1) or find(*args)
  )
  prompt_loras.common(located(*['<lora:a>'] * 5), tmp_path)
  assert len(calls) == 1
