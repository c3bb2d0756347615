"""Files of prompts: encodings, ends of lines, JSON lines."""

import json

import pytest

from sdxl_jax.sampling import prompts_file


def fields(path):
  return [line.fields for line in prompts_file.read(path)]


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_plain_prompts(tmp_path, encoding, end):
  path = tmp_path / 'a.txt'
  lines = [' ein Füchslein \U0001f98a ', '', '  ', 'a (pig:1.2)']
  path.write_bytes(end.join(lines).encode(encoding))
  assert fields(path) == [
    {'prompt': 'ein Füchslein \U0001f98a'},
    {'prompt': 'a (pig:1.2)'},
  ]
  assert [line.location for line in prompts_file.read(path)] == [
    f'{path}, line 1',
    f'{path}, line 4',
  ]


@pytest.mark.parametrize('mark', '\u2028\u2029\x85\v\f\x1c\x1d\x1e')
def test_other_separators_are_part_of_a_prompt(tmp_path, mark):
  prompt = f'a fox{mark}on snow'
  (tmp_path / 'a.txt').write_bytes(f'{prompt}\na pig'.encode())
  assert fields(tmp_path / 'a.txt') == [{'prompt': prompt}, {'prompt': 'a pig'}]
  line = json.dumps({'prompt': prompt}, ensure_ascii=False)
  (tmp_path / 'a.jsonl').write_bytes(line.encode())
  assert fields(tmp_path / 'a.jsonl') == [{'prompt': prompt}]


@pytest.mark.parametrize(
  'data, message',
  [
    (b'a fox\nein F\xfcchslein', '0xfc.*, in line 2, is not utf-8; convert'),
    ('a fox'.encode('utf-16-le'), 'line 1 has a NUL character'),
    (b'\xff\xfea', 'is not utf-16-le'),
    (b'a\rb\r\nF\xfc', 'in line 3'),
    ('\u0a0a\u010aa\n'.encode('utf-16') + b'b', 'in line 2'),
    (b' \n\n', 'has no prompts: write one on each line'),
    (b'a\n{"prompt": "b"}', 'line 2 is a JSON object.* rename the file'),
  ],
)
def test_what_is_no_plain_text(tmp_path, data, message):
  path = tmp_path / 'a.txt'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message) as caught:
    prompts_file.read(path)
  assert str(path) in str(caught.value) and '`' not in str(caught.value)


def test_marks_within_a_file(tmp_path):
  (tmp_path / 'a.txt').write_text('\ufeffa\n\ufeffb\n\ufeff\n')
  assert fields(tmp_path / 'a.txt') == [{'prompt': 'a'}, {'prompt': 'b'}]


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"prompt": "a"}\n{"prompt"', 'line 2 is not JSON'),
    ('["a"]', 'line 1 is not an object'),
    ('{"seed": 1}', 'line 1 has no "prompt"'),
    ('{"prompt": null}', 'line 1 has no "prompt"'),
    ('{"prompt": 3}', 'prompt is 3; it must be text in quotation marks'),
    ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
    ('{"prompt": "a \\ud83d fox"}', 'half a character.* as character 3'),
    ('{"prompt": "a", "seed": 1.5}', 'seed is 1.5'),
    ('{"prompt": "a", "seed": null}', 'seed is None'),
    ('{"prompt": "a", "weighted_prompts": 1}', 'weighted_prompts is 1'),
    ('{"prompt": "a", "target_size": [1]}', 'target_size is'),
    ('{"prompt": "a", "guidance_interval": 5}', 'two numbers, as .0.28, 5.42.'),
    ('{"prompt": "a", "cfg": 1}', "no setting 'cfg'; there are"),
    ('{"prompt": "a", "guidance_scale": NaN}', 'NaN is no number of JSON'),
    (
      '{"prompt": "a", "guidance_scale": 1e999}',
      'inf; it must be a number',
    ),
    ('{"prompt": "a", "steps": 7.0}', '7.0; it must be a whole number'),
    ('{"prompt": "a", "sampler": "Restart"}', 'choose one of .*dpmpp_2m'),
    ('{"prompt": "a", "sigmas": "linear"}', 'choose one of .*karras'),
    ('[' * 100_000, 'nested too deep'),
  ],
)
def test_odd_lines_of_json(tmp_path, text, message):
  path = tmp_path / 'a.jsonl'
  path.write_text(text)
  with pytest.raises(ValueError, match=message) as caught:
    prompts_file.read(path)
  assert f'{path}, line ' in str(caught.value)


def test_lines_of_json(tmp_path):
  path = tmp_path / 'a.JSONL'
  path.write_text(
    '{"prompt": "a", "target_size": [8, 9], "eta": 1}\n'
    '{"prompt": "\\ud83e\\udd8a", "sampler": "DPM++ 2M Karras"}'
  )
  assert fields(path) == [
    {'prompt': 'a', 'target_size': (8, 9), 'eta': 1},
    {
      'prompt': '\U0001f98a',
      'sampler': 'dpmpp_2m',
      'spacing': 'linspace',
      'sigmas': 'karras',
    },
  ]
  (tmp_path / 'a.json').write_text('["a"]')
  with pytest.raises(ValueError, match=r'or .jsonl, an object on each line'):
    prompts_file.read(tmp_path / 'a.json')


@pytest.mark.parametrize('suffix, separator', [('tsv', '\t'), ('CSV', ',')])
def test_tables(tmp_path, suffix, separator):
  """The prompt is text as it stands, without options of a line."""
  path = tmp_path / f'a.{suffix}'
  rows = [
    ('id', 'caption', 'size'),
    ('1', '"a ""fox"", a pig\nand a hen"', '3'),
    ('2', ' a pig --w 512 ', ''),
  ]
  text = '\r\n'.join(separator.join(row) for row in rows)
  path.write_text(f'\ufeff{text}\r\n', newline='')
  assert fields(path) == [
    {'prompt': 'a "fox", a pig\nand a hen'},
    {'prompt': 'a pig --w 512'},
  ]
  lines = [line.location.split(', ')[-1] for line in prompts_file.read(path)]
  assert lines == ['line 3', 'line 4']


@pytest.mark.parametrize(
  'text, message',
  [
    ('', r'has the columns \[\], of which one must be prompt or caption'),
    ('id\ttext\n1\ta', r"columns \['id', 'text'\]"),
    ('prompt\tcaption\n1\ta', 'of which one must be'),
    ('id\tprompt\n', 'has no prompts: write one in each row'),
    ('id\tprompt\n1\ta\n2', 'line 3 has no prompt'),
    ('id\tprompt\n1\t ', 'line 2 has no prompt'),
  ],
)
def test_what_is_no_table_of_prompts(tmp_path, text, message):
  path = tmp_path / 'a.tsv'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    prompts_file.read(path)
