"""Options at the end of a line of a prompts file, as sd-scripts has them."""

import re

import pytest

from sdxl_jax.sampling import line_options, prompts_file

LINE = 'a red fox --w 832 --h 1216 --d 7 --s 28 --l 5 --n blurry, very dark'
FIELDS = {
  'prompt': 'a red fox',
  'width': 832,
  'height': 1216,
  'seed': 7,
  'steps': 28,
  'guidance_scale': 5.0,
  'negative_prompt': 'blurry, very dark',
}


@pytest.mark.parametrize(
  'line, fields',
  [
    (LINE, FIELDS),
    ('a fox', {'prompt': 'a fox'}),
    ('a fox --n', {'prompt': 'a fox', 'negative_prompt': ''}),
    ('--n dark', {'prompt': '', 'negative_prompt': 'dark'}),
    ('a --ar 3:2 fox --d 1', {'prompt': 'a --ar 3:2 fox', 'seed': 1}),
    ('state-of-the-art--no', {'prompt': 'state-of-the-art--no'}),
    ('a --wide --w 8', {'prompt': 'a --wide', 'width': 8}),
    ('x --ss euler_a', {'prompt': 'x', 'sampler': 'euler_ancestral'}),
    ('x --ss DPM++ 2M', {'prompt': 'x', 'sampler': 'DPM++ 2M'}),
  ],
)
def test_lines(line, fields):
  assert line_options.parse(line, 'here') == fields


@pytest.mark.parametrize(
  'line, message',
  [
    ('a --w wide', "x.txt, line 2: --w is 'wide'; it must be a whole number"),
    ('a --d', "line 2: --d is ''; it must be a whole number"),
    ('a --l a', "line 2: --l is 'a'; it must be a number"),
    ('a --d 1 --d 2', 'line 2 has --d twice: leave one out'),
    ('a --ss pndm', "line 2: sampler is 'pndm'; choose one of"),
    ('a --l nan', 'line 2: guidance_scale is nan; it must be a number of'),
  ],
)
def test_refused(line, message, tmp_path):
  path = tmp_path / 'x.txt'
  path.write_text(f'a fox\n{line}\n')
  with pytest.raises(ValueError, match=re.escape(message)):
    prompts_file.read(path)


def test_a_file_of_lines_and_one_of_json_are_alike(tmp_path):
  (tmp_path / 'x.txt').write_text(f'{LINE}\n\na fox --ss dpm++ 2m karras')
  text = str(FIELDS).replace("'", '"')
  more = '{"prompt": "a fox", "sampler": "dpm++ 2m karras"}'
  (tmp_path / 'x.jsonl').write_text(f'{text}\n{more}\n')
  plain, json = (
    [line.fields for line in prompts_file.read(tmp_path / name)]
    for name in ('x.txt', 'x.jsonl')
  )
  assert plain == json
  assert plain[0] == FIELDS and plain[1]['sigmas'] == 'karras'
