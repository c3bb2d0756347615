"""The command: flags, prompts files, PNGs whose settings are used again."""

import dataclasses
import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags as absl_flags
from PIL import Image

from sdxl_jax import sample
from sdxl_jax.data import images
from sdxl_jax.sampling import (
  init_images,
  pipelines,
  sample_flags,
  sample_request,
)
from sdxl_jax.text import tokenizer
from tests.support import golden_sets, watermark_detector

TINY = golden_sets.SETS[0] / 'tiny'
SMALL = '--height=64', '--width=96', '--steps=2'


def run(*args, cwd=None):
  command = (sys.executable, '-m', 'sdxl_jax.sample', *map(str, args))
  return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_command(tmp_path):
  """Prompts with settings of their own, batches, and a picture drawn again."""
  file = tmp_path / 'prompts.jsonl'
  lines = [
    {'prompt': 'a fox', 'negative_prompt': ''},
    {'prompt': 'ein Füchschen', 'negative_prompt': 'x', 'seed': 7},
    {'prompt': 'a pig', 'sampler': 'ddim', 'eta': 0.5},
  ]
  text = '\n\n'.join(json.dumps(line) for line in lines)
  file.write_text(text, encoding='utf-8')
  out = tmp_path / 'new'
  first = run(
    *('--weights', TINY / 'base', '--prompts_file', file, '--batch=2', *SMALL),
    *('--repeat=2', '--output', out / '{i}-{seed}.png'),
    *('--grid', out / 'grid.png', '--save_latents', out / 'all.npy'),
    *('--refiner', TINY / 'refiner', '--preview', out / 'preview.png'),
    '--preview_every=1',
  )
  assert first.returncode == 0, first.stderr
  names = ['0-0', '1-1', '2-7', '3-8', '4-0', '5-1']
  found = {path.name for path in out.iterdir()}
  assert found == {f'{n}.png' for n in names} | {
    *('grid.png', 'all.npy', 'preview.png')
  }
  assert np.load(out / 'all.npy').shape == (6, 8, 12, 4)
  assert 's per image' in first.stdout and '4 of 6: 100%' in first.stderr
  told, models = sample_request.from_png_metadata(out / '3-8.png')
  assert told['prompt'] == 'ein Füchschen' and told['seed'] == 8
  assert told['sampler'] == 'euler'  # the folder's own
  assert models['refiner'] == str(TINY / 'refiner')
  with Image.open(out / '3-8.png') as picture:
    assert picture.size == (96, 64)

  again = run(
    *('--from_png', out / '3-8.png', '--output', out / 'again.png'),
  )
  assert again.returncode == 0, again.stderr
  pixels = [np.asarray(Image.open(out / n)) for n in ('3-8.png', 'again.png')]
  assert np.abs(np.int32(pixels[0]) - pixels[1]).max() <= 1

  # From a picture with an odd side and transparency, under a mask.
  Image.new('RGBA', (99, 70), (255, 0, 0, 99)).save(tmp_path / 'image.png')
  Image.new('L', (99, 70), 255).save(tmp_path / 'mask.png')
  painted = run(
    *('--weights', TINY / 'base', '--prompt', 'a fox', '--steps=2'),
    *('--image', tmp_path / 'image.png', '--mask', tmp_path / 'mask.png'),
    *('--output', out / 'painted.png', '--preset=lcm'),
  )
  assert painted.returncode == 0, painted.stderr
  told, _ = sample_request.from_png_metadata(out / 'painted.png')
  assert told['sampler'] == 'lcm' and told['steps'] == 2
  with Image.open(out / 'painted.png') as picture:
    assert picture.size == (96, 64)


@pytest.mark.slow
def test_watermark(tmp_path):
  drawn = run(
    *('--weights', TINY / 'base', '--prompt', 'a fox', '--watermark'),
    *('--height=256', '--width=256', '--steps=1'),
    *('--output', tmp_path / 'a.png'),
  )
  assert drawn.returncode == 0, drawn.stderr
  pixels = np.asarray(Image.open(tmp_path / 'a.png'))
  assert watermark_detector.detect(pixels) >= watermark_detector.LIKELY


@pytest.mark.parametrize(
  'args, message',
  [
    (['--crop_top_left', '3'], 'two whole numbers in px, as 1024,1024'),
    (['--prompts_file', 'none.txt'], "No such file or directory: 'none.txt'"),
    (['--prompts_file', 'empty.txt'], 'empty.txt has no prompts'),
    (['--prompts_file', 'prompts.txt'], 'both given: leave one out'),
    (['--output', 'a.jpg'], '--output=a.jpg: images are written as .png'),
    (['--output', 'file/a.png'], 'file/a.png cannot be written'),
    (['--output', '{k}.png'], "'k'; braces may hold i and seed"),
    (['--repeat=2', '--output', 'a{seed:.1}.png'], 'Precision not allowed'),
    (['--dtype=int8'], '--dtype=int8 is not float32 or bfloat16'),
    (['--from_png', 'plain.png'], "no text under ['sdxl_jax']"),
    (['--init_noise=two.npy'], 'noise for 2 images, and 1 are to be sampled'),
    (['--weights='], 'no model to sample from: pass --weights'),
    ([], 'x is no diffusers folder'),
    (['--weights', TINY / 'base', '--refiner=x'], 'x is no diffusers folder'),
  ],
)
def test_bad_flags(tmp_path, args, message, flags, monkeypatch):
  """Before weights are loaded, which may take minutes."""
  (tmp_path / 'empty.txt').write_text('\n \n')
  (tmp_path / 'prompts.txt').write_text('a fox\n')
  (tmp_path / 'file').write_text('')
  images.save(tmp_path / 'plain.png', np.zeros((8, 8, 3)))
  np.save(tmp_path / 'two.npy', np.zeros((2, 8, 8, 4)))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pipelines, 'load', None)
  with pytest.raises((ValueError, OSError), match=re.escape(message)):
    flags(['sample', '--weights=x', '--prompt=a', *map(str, args)])
    sample.main(flags)


@pytest.fixture
def flags():
  """The command's flags, not shared with other tests."""
  values = absl_flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(absl_flags, 'FLAGS', values)
    kinds = 'string', 'integer', 'float', 'bool', 'enum', 'list', 'multi_string'
    for kind in kinds:
      define = getattr(absl_flags, f'DEFINE_{kind}')
      patch.setattr(
        sample_flags.flags,
        f'DEFINE_{kind}',
        functools.partial(define, flag_values=values),
      )
    sample_flags.define()
  return values


def test_given_noise(tmp_path, flags, monkeypatch):
  """Each picture has its own, also in a last batch that is not full."""
  monkeypatch.chdir(tmp_path)
  noise = np.random.default_rng(0).normal(size=(3, 8, 12, 4))

  def draw(noise, *args):
    np.save('noise.npy', noise)
    flags.unparse_flags()
    flags(
      [
        *('sample', f'--weights={TINY / "base"}', '--prompt=a', *SMALL, *args),
        *('--init_noise=noise.npy', '--save_latents=latents.npy'),
      ]
    )
    sample.main(flags)
    return np.load('latents.npy')

  together = draw(noise, '--repeat=3', '--batch=2')
  alone = draw(noise[2:], '--repeat=1')
  assert np.abs(together[2] - alone[0]).max() < 1e-5 * np.abs(alone).max()
  assert np.abs(together[1] - alone[0]).max() > 0.1


def test_help_lists_the_flags():
  listed = run('--help').stdout
  for flag in ('--prompt:', '--refiner_start:', '--weights:', '--grid:'):
    assert flag in listed


def test_latents_of_several_sizes_are_no_array(flags):
  asked = [
    sample_request.Request(prompt='a', height=side) for side in (64, 128)
  ]
  flags(['sample', '--save_latents=a.npy'])
  with pytest.raises(ValueError, match='one command for each size'):
    sample.check_arrays(asked, None, flags)


def test_the_clock_tells_compiling_apart(monkeypatch):
  now = iter([0.0, 3.0, 10.0])
  monkeypatch.setattr(sample.time, 'monotonic', lambda: next(now))
  clock = sample.Clock()
  clock.listen('/jax/core/compile/backend_compile_duration', 1.0)
  clock.stop('loading')
  clock.listen('/jax/core/compile/backend_compile_duration', 5.0)
  clock.listen('/jax/something_else_duration', 5.0)
  clock.stop('sampling')
  assert clock.spent == {'loading': 2.0, 'sampling': 2.0}
  assert 'compiling 6.0 s, sampling 2.0 s: 0.50 s per image' in clock.summary(4)


def test_prompts_files(tmp_path):
  read = sample_flags.read_prompts
  plain = tmp_path / 'a.txt'
  plain.write_text('\ufeff a fox \n\n  \na pig', encoding='utf-8')
  assert read(plain) == [{'prompt': 'a fox'}, {'prompt': 'a pig'}]
  lines = tmp_path / 'a.jsonl'
  for text, message in (
    ('{"prompt": "a"}\n{"prompt"', 'line 2 is not JSON'),
    ('["a"]', 'line 1 is not an object'),
    ('{"seed": 1}', 'line 1 has no "prompt"'),
    ('{"prompt": 3}', 'prompt is 3, which is no'),
    ('{"prompt": "a", "seed": 1.5}', 'seed is 1.5'),
    ('{"prompt": "a", "seed": null}', 'seed is None'),
    ('{"prompt": "a", "weighted_prompts": 1}', 'weighted_prompts is 1'),
    ('{"prompt": "a", "target_size": [1]}', 'target_size is'),
    ('{"prompt": "a", "cfg": 1}', "no setting 'cfg'; there are"),
  ):
    lines.write_text(text)
    with pytest.raises(ValueError, match=message):
      read(lines)
  lines.write_text('{"prompt": "a", "target_size": [8, 9], "eta": 1}')
  assert read(lines) == [{'prompt': 'a', 'target_size': (8, 9), 'eta': 1}]


def test_batches_share_their_settings():

  def ask(seed, **options):
    return sample_request.Request(prompt='a', seed=seed, **options)

  asked = [
    *(ask(0), ask(1), ask(2), ask(3, steps=4), ask(4, steps=4)),
    ask(5, steps=4, negative_prompt=''),
  ]
  found = [[r.seed for r in b] for b in sample_request.batches(asked, 2, None)]
  assert found == [[0, 1], [2], [3, 4], [5]]


def test_batches_have_one_number_of_chunks():
  tokenize = tokenizer.load()

  def ask(*counts, **options):
    texts = dict(
      zip(('prompt', 'negative_prompt'), ('fox ' * n for n in counts))
    )
    return sample_request.Request(**texts, long_prompts=True, **options)

  marks = '(fox:1.1) ' * 75, 'fox'  # 75 tokens
  both = dict(weighted_prompts=True, long_prompts=True)
  asked = [
    *(ask(3), ask(75), ask(76), ask(150), ask(151)),
    *(ask(3, 76), ask(75, 100), ask(76, 3), ask(3, prompt_2='fox ' * 76)),
    *(sample_request.Request(prompt=p, **both) for p in marks),
  ]
  found = [len(batch) for batch in sample_request.batches(asked, 9, tokenize)]
  assert found == [2, 2, 1, 2, 1, 1, 2]
  asked = [dataclasses.replace(r, long_prompts=False) for r in asked[:5]]
  found = [len(batch) for batch in sample_request.batches(asked, 9, tokenize)]
  assert found == [5]


def test_what_a_picture_tells_is_what_was_asked(tmp_path):
  asked = sample_request.Request(
    prompt='ein "Fuchs"\n🦊', seed=3, target_size=(8, 9), long_prompts=True
  )
  path = tmp_path / 'a.png'
  text = sample_request.to_png_metadata(asked, {'weights': 'W'}, (8, 8, 3))
  images.save(path, np.zeros((8, 8, 3)), text)
  told, models = sample_request.from_png_metadata(path)
  asked = dataclasses.replace(asked, height=8, width=8)
  assert sample_request.Request(**told) == asked and models == {'weights': 'W'}
  assert set(told) == set(
    sample_request.FIELDS
  )  # whatever the defaults will be


def test_starting_pictures(tmp_path):
  image, mask = tmp_path / 'image.png', tmp_path / 'mask.png'
  images.save(image, np.zeros((70, 99, 3)))
  load = init_images.load
  assert load(None, None, (None, 32), (64, 64))['size'] == (64, 32)
  with pytest.raises(ValueError, match='height is 0 px; it must be at least 1'):
    load(None, None, (0, 32), (64, 64))
  found = load(image, None, (None, None), (64, 64))
  assert found['size'] == (64, 96) and found['image'].shape == (64, 96, 3)
  with pytest.raises(ValueError, match='given without an image'):
    load(None, mask, (None, None), (64, 64))
  images.save(mask, np.ones((70, 98, 3)))
  with pytest.raises(ValueError, match='98 x 70 px and .* 99 x 70'):
    load(image, mask, (None, None), (64, 64))
  images.save(mask, -np.ones((70, 99, 3)))
  with pytest.raises(ValueError, match='nowhere white'):
    load(image, mask, (None, None), (64, 64))
  images.save(mask, np.ones((70, 99, 3)))
  found = load(image, mask, (128, 64), (64, 64))
  assert found['mask'].shape == (128, 64) and (found['mask'] == 1).all()
