"""Folders as the tools of other benchmarks read them."""

import json

import numpy as np
import pytest
from PIL import Image

from sdxl_jax.evaluation import benchmark_layouts


def make_files(folder, count):
  """Images of one colour each, which compression keeps."""
  folder.mkdir()
  files = [folder / f'{i}.png' for i in range(count)]
  for i, file in enumerate(files):
    Image.new('RGB', (16, 16), (20 * i, 100, 0)).save(file)
  return files


def colour(path, x=8, y=8):
  with Image.open(path) as image:
    return image.getpixel((x, y))[0]


def test_geneval(tmp_path):
  lines = [
    {'tag': 'colors', 'include': [{'class': 'fox', 'count': 1}], 'prompt': 'a'},
    {'tag': 'counting', 'prompt': 'b'},
  ]
  path = tmp_path / 'evaluation_metadata.jsonl'
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  items = benchmark_layouts.read('geneval', path)
  assert [item.prompt for item in items] == ['a', 'b']
  files, out = make_files(tmp_path / 'images', 8), tmp_path / 'out'
  benchmark_layouts.write('geneval', items, files, out)
  assert sorted(x.name for x in out.iterdir()) == ['00000', '00001']
  assert json.loads((out / '00000' / 'metadata.jsonl').read_text()) == lines[0]
  samples = sorted((out / '00001' / 'samples').iterdir())
  assert [x.name for x in samples] == [f'{i:05}.png' for i in range(4)]
  assert [colour(x) for x in samples] == [80, 100, 120, 140]


def test_dpg(tmp_path):
  prompts = tmp_path / 'prompts'
  prompts.mkdir()
  (prompts / 'partiprompts9.txt').write_text('b\n')
  (prompts / '12.txt').write_text('a')
  items = benchmark_layouts.read('dpg', prompts)
  assert [item.prompt for item in items] == ['a', 'b']
  files, out = make_files(tmp_path / 'images', 8), tmp_path / 'out'
  benchmark_layouts.write('dpg', items, files, out)
  names = sorted(x.name for x in out.iterdir())
  assert names == ['12.png', 'partiprompts9.png']
  with Image.open(out / '12.png') as image:
    assert image.size == (32, 32)
  places = (8, 8), (24, 8), (8, 24), (24, 24)
  found = [colour(out / 'partiprompts9.png', *place) for place in places]
  assert found == [80, 100, 120, 140]


def test_hpsv2(tmp_path):
  styles = tmp_path / 'benchmark'
  styles.mkdir()
  (styles / 'anime.json').write_text('["a", "b"]')
  (styles / 'photo.json').write_text('["c"]')
  items = benchmark_layouts.read('hpsv2', styles)
  assert [item.prompt for item in items] == ['a', 'b', 'c']
  files, out = make_files(tmp_path / 'images', 3), tmp_path / 'out'
  benchmark_layouts.write('hpsv2', items, files, out)
  written = sorted(str(p.relative_to(out)) for p in out.rglob('*.jpg'))
  assert written == ['anime/00000.jpg', 'anime/00001.jpg', 'photo/00000.jpg']
  with Image.open(out / 'photo' / '00000.jpg') as image:
    assert image.format == 'JPEG'
    assert np.abs(np.asarray(image)[8, 8] - [40.0, 100, 0]).max() <= 2
  single = benchmark_layouts.read('hpsv2', styles / 'photo.json')
  assert [item.name for item in single] == ['photo/00000']


@pytest.mark.parametrize(
  'name, file, text, message',
  [
    (
      'geneval',
      'a.jsonl',
      '{"prompt": "a"}\n{"x": 1}',
      'a.jsonl, line 2 is no',
    ),
    ('geneval', 'a.jsonl', '["a"]', 'line 1 is no object with a "prompt"'),
    ('geneval', 'a.jsonl', '\n', 'has no prompts of geneval'),
    ('geneval', 'a.jsonl', '{"prompt": 3}', 'has the prompt 3, which is no'),
    ('dpg', '.', '', 'has no prompts of dpg'),
    ('dpg', 'a.txt', ' \n', "a has the prompt '', which is no text"),
    ('hpsv2', 'a.json', '{}', 'a.json is no list of prompts'),
    ('hpsv2', 'a.json', '[', 'a.json is not JSON'),
  ],
)
def test_other_files(tmp_path, name, file, text, message):
  path = tmp_path / file
  if file != '.':
    path.write_text(text)
  with pytest.raises(ValueError, match=message):
    benchmark_layouts.read(name, tmp_path if name == 'dpg' else path)


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match='pass the prompts of dpg'):
    benchmark_layouts.read('dpg', tmp_path / 'none')


def test_another_number_of_images(tmp_path):
  item = benchmark_layouts.Item('a', 'a')
  with pytest.raises(ValueError, match='3 images; dpg takes 4 of each of 1'):
    benchmark_layouts.write('dpg', [item], ['a', 'b', 'c'], tmp_path)
