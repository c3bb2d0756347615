"""The command: flags, prompts files, PNGs whose settings are used again."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags as absl_flags
from PIL import Image

from sdxl_jax import sample
from sdxl_jax.data import images
from sdxl_jax.distributed import device_mesh
from sdxl_jax.programs import program_cache
from sdxl_jax.sampling import (
  command_files,
  drawing,
  finiteness,
  generation,
  init_images,
  model_loading,
  phase_clock,
  pipelines,
  png_settings,
  request_batches,
  sample_flags,
  sample_request,
)
from sdxl_jax.sampling.model_flags import MODEL_OPTIONS
from sdxl_jax.text import tokenizer
from tests.support import golden_sets, watermark_detector

TINY = golden_sets.SETS[0] / 'tiny'
SMALL = '--height=64', '--width=96', '--steps=2'
NO_PNG = png_settings.PngSettings({}, {})


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
  fields, models, *_ = png_settings.load(out / '3-8.png')
  assert fields['prompt'] == 'ein Füchschen' and fields['seed'] == 8
  assert fields['sampler'] == 'euler'  # the folder's own
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
  assert 'mask.png repaints 100 % of the image' in painted.stdout
  fields = png_settings.load(out / 'painted.png').fields
  assert fields['sampler'] == 'lcm' and fields['steps'] == 2
  with Image.open(out / 'painted.png') as picture:
    assert picture.size == (96, 64)


@pytest.mark.slow
def test_a_stopped_command_draws_what_is_missing(tmp_path):
  """An image does not depend on its batch: the same files in the end."""
  (tmp_path / 'prompts.txt').write_text('a fox\na pig\na hen --s 1\n')
  args = (
    *('--weights', TINY / 'base', '--prompts_file', tmp_path / 'prompts.txt'),
    *('--output', tmp_path / '{i}.png', '--batch=2', *SMALL),
  )
  paths = [tmp_path / f'{i}.png' for i in range(3)]
  first = run(*args)
  assert first.returncode == 0, first.stderr
  written = [path.read_bytes() for path in paths]
  paths[1].unlink()
  for count in 2, 3:
    again = run(*args, '--skip_existing')
    assert again.returncode == 0, again.stderr
    assert f'{count} of 3 images are there' in again.stdout
    assert [path.read_bytes() for path in paths] == written
  other = run(*args, '--skip_existing', '--guidance_scale=7')
  assert other.returncode == 1
  assert '0.png is there already, made with another guidance' in other.stderr


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
    (['--guidance_interval=5'], '--guidance_interval=5 must be two numbers'),
    (['--guidance_interval=5,1'], 'guidance_interval is 5,1; it must be two'),
    (['--prompts_file', 'none.txt'], "No such file or directory: 'none.txt'"),
    (['--prompts_file', 'empty.txt'], 'empty.txt has no prompts'),
    (['--prompts_file', 'prompts.txt'], 'both given: leave one out'),
    (['--output', 'a.jpg'], '--output=a.jpg: images are written as .png'),
    (
      ['--output', 'file/a.png'],
      'file/a.png cannot be written: choose another --output',
    ),
    (
      ['--grid', 'file/a.png'],
      'file/a.png cannot be written: choose another --grid',
    ),
    (['--grid', './out.png'], 'out.png is a file of --output as well'),
    (
      ['--grid=g.png', '--skip_existing'],
      '--grid=g.png is made of all images, and --skip_existing draws',
    ),
    (['--output', '{k}.png'], "'k'; braces may hold i and seed"),
    (['--repeat=2', '--output', 'a{seed:.1}.png'], 'Precision not allowed'),
    (['--dtype=int8'], "--dtype is 'int8'; pass auto, float32, bfloat16 or f"),
    (['--weights_dtype=int4'], "--weights_dtype is 'int4'; pass int8 or flo"),
    (['--vae_dtype=float16'], "float16 overflows in SDXL's own autoencoder: p"),
    (['--from_png', 'plain.png'], "no text under ['sdxl_jax']"),
    (['--init_noise=two.npy'], 'noise for 2 images, and 1 are to be sampled'),
    (
      ['--init_noise=nan.npy'],
      '--init_noise=nan.npy has 1 values that are not',
    ),
    (['--init_noise=empty.txt'], '--init_noise=empty.txt cannot be read'),
    (['--init_noise=flat.npy'], 'holds no array of 4 axes'),
    (['--seed=-2'], '--seed is -2; it must be a whole number from 0 to'),
    (['--seed', 2**64], '--seed is 18446744073709551616; it must be a whole'),
    (['--seed', 2**64 - 1, '--repeat=2'], 'seed 18446744073709551616, and the'),
    (['--prompt=', '--prompts_file=seed.jsonl'], 'line 2: seed is -7; it must'),
    (['--guidance_scale=nan'], 'guidance_scale is nan; it must be a finite'),
    (['--mask_threshold=0'], 'mask_threshold is 0.0; it must be above 0'),
    (['--image=small.png'], 'small.png is 8 x 7 px (width x height), and an'),
    (['--image=plain.png', '--mask=black.png'], 'black.png is nowhere white'),
    (['--image=plain.png', '--mask=small.png'], 'so scale it to 8 x 8 px'),
    (['--weights='], 'no model to sample from: pass --weights'),
    (
      ['--from_png', 'a1111.png', '--weights='],
      'pass --weights; a1111.png was made with sdxl-base',
    ),
    (['--prompt', '\udc80'], "prompt has half a character, '\\udc80'"),
    ([], 'x does not exist'),
    (['--weights', TINY / 'base', '--refiner=x'], 'x does not exist'),
  ],
)
def test_bad_flags(tmp_path, args, message, flags, monkeypatch):
  """Before weights are loaded, which may take minutes."""
  (tmp_path / 'empty.txt').write_text('\n \n')
  (tmp_path / 'prompts.txt').write_text('a fox\n')
  (tmp_path / 'file').write_text('')
  lines = '{"prompt": "a", "seed": -1}\n{"prompt": "a", "seed": -7}'
  (tmp_path / 'seed.jsonl').write_text(lines)
  images.save(tmp_path / 'plain.png', np.zeros((8, 8, 3)))
  text = 'a\nSteps: 1, Seed: 1, Sampler: Euler, Model: sdxl-base'
  image = np.zeros((8, 8, 3))
  images.save(tmp_path / 'a1111.png', image, {'parameters': text})
  images.save(tmp_path / 'black.png', -np.ones((8, 8, 3)))
  images.save(tmp_path / 'small.png', np.zeros((7, 8, 3)))
  np.save(tmp_path / 'two.npy', np.zeros((2, 8, 8, 4)))
  np.save(tmp_path / 'flat.npy', np.zeros((8, 8)))
  noise = np.zeros((1, 8, 8, 4))
  noise[0, 0, 0, 0] = np.nan
  np.save(tmp_path / 'nan.npy', noise)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pipelines, 'load', None)
  with pytest.raises((ValueError, OSError), match=re.escape(message)):
    flags(['sample', '--weights=x', '--prompt=a', *map(str, args)])
    sample.main(flags)


@pytest.mark.parametrize(
  'lines, message',
  [
    (['{"prompt": "b", "sampler": "PLMS"}'], "line 2: sampler is 'PLMS'"),
    (['{"prompt": "b", "image": "none.png"}'], 'line 2: .*none.png'),
    (['{"prompt": "b", "image": "file"}'], 'line 2: file: not a readable'),
    (['{"prompt": "b", "steps": 0}'], 'line 2: steps is 0'),
    (['{"prompt": "b", "strength": 0.5}'], 'line 2: strength is given without'),
    (['{"prompt": "b", "eta": 2}'], 'line 2: eta is 2'),
    (
      ['{"prompt": "b", "guidance_rescale": 2.0}'],
      '^p.jsonl, line 2: guidance_rescale is 2.0; it must be from 0',
    ),
    (['{"prompt": "b", "mask_threshold": 0}'], 'line 2: mask_threshold is 0'),
    (['{"prompt": "<lora:none:1>"}'], "line 2: no LoRA file 'none'"),
    (['{"prompt": "<lora:a:1>"}'], 'line 2 names the LoRAs .* and .*line 1 '),
    (['{"prompt": "(a:2000)"}'], 'line 2: 2000 is not a weight'),
    (['{"prompt": "[a|b:3]"}'], 'line 2: .a.b. takes no number'),
    (['', '{"prompt": "b", "seed": -2}'], 'line 3: seed is -2'),
  ],
)
def test_all_lines_are_checked_before_weights_are_loaded(
  tmp_path, lines, message, flags, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(pipelines, 'load', None)
  (tmp_path / 'file').write_text('')
  (tmp_path / 'loras').mkdir()
  (tmp_path / 'loras' / 'a.safetensors').write_text('')
  (tmp_path / 'p.jsonl').write_text('\n'.join(['{"prompt": "a"}', *lines]))
  command = ['sample', '--weights', str(TINY / 'base')]
  command += ['--prompts_file=p.jsonl', '--lora_dir=loras']
  flags([*command, '--weighted_prompts', '--output=out/{i}.png'])
  with pytest.raises((ValueError, OSError), match=message):
    sample.main(flags)
  assert not list(tmp_path.glob('out/*'))


@pytest.mark.parametrize(
  'line, message',
  [
    ({'height': 65}, 'line 2: size 65 x 64'),
    ({'steps': 2000}, 'line 2: .*steps'),
    ({'clip_skip': 99}, 'line 2: clip_skip 99 is not in'),
    ({'prompt': 'a AND b', 'guidance_scale': 1}, 'line 2: AND combines'),
  ],
)
def test_all_lines_are_checked_before_the_first_image(
  tmp_path, line, message, flags, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sample, 'generate', None)
  lines = [{'prompt': 'a'}, {'prompt': 'b'} | line]
  (tmp_path / 'p.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  command = ['sample', '--weights', str(TINY / 'base'), '--weighted_prompts']
  command += ['--prompts_file=p.jsonl', '--height=64', '--width=64']
  flags([*command, '--output=out/{i}.png'])
  with pytest.raises(ValueError, match=message):
    sample.main(flags)
  assert not list(tmp_path.glob('out/*'))


@pytest.mark.slow
def test_loras_of_prompts(tmp_path, flags, capsys, monkeypatch):
  """Merged from --lora_dir, or named where there is none; kept in the PNG."""
  file = TINY / 'lora' / 'kohya.safetensors'
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'loras').mkdir()
  (tmp_path / 'loras' / 'my style.safetensors').symlink_to(file)

  def latents(*args):
    flags.unparse_flags()
    base = ['sample', '--weights', str(TINY / 'base'), *SMALL]
    flags([*base, *args, '--save_latents=a.npy', '--output=a.png'])
    sample.main(flags)
    flags['lora'].value = flags['lora_dir'].value = None
    return np.load('a.npy')

  tagged = '--prompt=a fox <lora:my style:0.8>'
  plain = latents(tagged)
  assert '<lora:my style:0.8> is left out: pass the folder' in (
    capsys.readouterr().err
  )
  merged = latents(tagged, '--lora_dir=loras')
  fields, models, *_ = png_settings.load('a.png')
  assert fields['prompt'] == 'a fox <lora:my style:0.8>'
  assert models['lora_dir'] == 'loras' and models['lora'] == []
  by_flag = latents('--prompt=a fox', f'--lora={file}:0.8')
  np.testing.assert_array_equal(merged, by_flag)
  np.testing.assert_array_equal(plain, latents('--prompt=a fox'))
  assert np.abs(merged - plain).max() > 1e-3


@pytest.fixture
def flags():
  """The command's flags, not shared with other tests."""
  values = absl_flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(absl_flags, 'FLAGS', values)
    kinds = 'string', 'integer', 'float', 'bool', 'enum', 'list', 'flag'
    for kind in (*kinds, 'multi_string'):
      define = getattr(absl_flags, f'DEFINE_{kind}')
      patch.setattr(
        sample_flags.flags,
        f'DEFINE_{kind}',
        functools.partial(define, flag_values=values),
      )
    sample_flags.define()
  return values


def test_the_fast_preset_says_what_it_trades(flags, capsys):
  flags(['sample', '--preset=fast', '--prompt=a', '--steps=15'])
  ((_, request),) = sample_flags.read(flags, NO_PNG)
  assert request.steps == 15 and request.sampler == 'dpmpp_2m'
  assert request.guidance_interval == (0.28, 5.42)
  line = capsys.readouterr().out
  assert 'fast: 15 steps of dpmpp_2m, karras, in place of 50' in line
  assert 'guided from noise level 5.42 to 0.28 alone' in line
  assert line.count('\n') == 1
  flags.unparse_flags()
  flags(['sample', '--preset=lcm', '--prompt=a'])
  ((_, request),) = sample_flags.read(flags, NO_PNG)
  assert request.guidance_interval is None and not capsys.readouterr().out


AUTO = {'dtype': 'auto', 'vae_dtype': 'auto'}


def test_a_warm_up_needs_no_prompt(tmp_path, flags):
  flags(['sample', '--warm_up', '--height=64'])
  ((_, request),) = sample_flags.read(flags, NO_PNG)
  assert request.prompt == '' and request.height == 64
  flags.unparse_flags()
  (tmp_path / 'a.txt').write_text('a fox\na pig\n')
  flags(['sample', '--warm_up', f'--prompts_file={tmp_path / "a.txt"}'])
  located = sample_flags.read(flags, NO_PNG)
  assert [r.prompt for _, r in located] == ['a fox', 'a pig']


def test_a_warm_up_needs_a_folder(flags, monkeypatch):
  flags(['sample', '--warm_up'])
  monkeypatch.setattr(drawing, 'load_for', lambda *args: ([], None, None))
  with program_cache.unused(), pytest.raises(ValueError, match='--cache_dir'):
    drawing.warm_up([], AUTO, None, sample.options_of(flags))


def test_a_warm_up_compiles_each_kind_of_batch_once(
  flags, monkeypatch, tmp_path, capsys
):
  flags(['sample', '--warm_up', '--batch=2'])
  base = SimpleNamespace(tokenize=None, text_chunks=1, size=(64, 64))
  asked = [
    sample_request.Request(prompt='a', seed=i, height=64 + 64 * (i > 4))
    for i in range(8)
  ]
  calls = []
  monkeypatch.setattr(drawing, 'load_for', lambda *args: (asked, base, None))
  monkeypatch.setattr(
    generation, 'generate', lambda base, **kwargs: calls.append(kwargs)
  )
  monkeypatch.setattr(program_cache, 'folder', lambda: tmp_path)
  drawing.warm_up([], AUTO, None, sample.options_of(flags))
  assert all(call['warm_up'] and len(call['prompts']) == 2 for call in calls)
  assert [call['size'] for call in calls] == [(64, 64), (128, 64)]
  said = capsys.readouterr().out
  assert 'programs of 2 batches' in said and 'from the cache)' in said


def test_flags_of_the_models(tmp_path, flags):
  """Flags come before a PNG, which may be of an earlier version."""

  def options(*args):
    flags.unparse_flags()
    flags(['sample', '--prompt=a', *map(str, args)])
    return sample_flags.model_options(flags, sample_flags.load_png(flags))

  chosen = options(
    '--weights=w',
    '--variant=bf16',
    '--vae=v',
    '--prediction=v',
    '--zero_snr',
    '--skip_unsupported',
    '--lora=a',
    '--lora=b:2',
  )
  assert chosen == {
    'weights': 'w',
    'refiner': None,
    'dtype': 'auto',
    'vae_dtype': 'auto',
    'weights_dtype': None,
    'average': 'ema',
    'variant': 'bf16',
    'vae': 'v',
    'prediction': 'v',
    'zero_snr': True,
    'lora': ['a', 'b:2'],
    'lora_dir': None,
    'embedding': (),
    'controlnet': (),
    'skip_unsupported': True,
  }
  # An image holds them.
  request = sample_request.Request(prompt='a')
  pixels = np.zeros((8, 8, 3), np.uint8)
  older = {'weights': 'w', 'dtype': 'bfloat16', 'lora': []}
  for name, models in (('new', chosen), ('old', older)):
    text = sample_request.to_png_metadata(request, models, pixels.shape)
    images.save(tmp_path / f'{name}.png', pixels, text)
  new, old = (f'--from_png={tmp_path}/{name}.png' for name in ('new', 'old'))
  assert options(new) == chosen | {'embedding': [], 'controlnet': []}
  assert options(new, '--nozero_snr')['zero_snr'] is False
  assert options(old) == dict.fromkeys(chosen) | {
    'weights': 'w',
    'dtype': 'bfloat16',
    'vae_dtype': 'float32',
    'average': 'ema',
    'lora': [],
    'controlnet': (),
    'embedding': (),
    'skip_unsupported': False,
  }


def test_a_drawn_seed_is_printed_named_and_kept(flags, capsys):
  """The second image has the next one, and both can be sampled again."""
  flags(['sample', '--prompt=a', '--seed=-1', '--repeat=2'])
  (_, first), (_, second) = sample_flags.read(flags, NO_PNG)
  assert capsys.readouterr().out == f'seed -1: drew {first.seed}\n'
  assert 0 <= first.seed == second.seed - 1
  names = sample_flags.file_names('{seed}.png', [first, second])
  assert names == [f'{first.seed}.png', f'{first.seed + 1}.png']
  text = sample_request.to_png_metadata(second, {}, (64, 64, 3))
  assert json.loads(text['sdxl_jax'])['seed'] == second.seed


def test_seeds_that_are_given_are_not_drawn(flags, capsys):
  flags(['sample', '--prompt=a', f'--seed={2**64 - 2}', '--repeat=2'])
  seeds = [request.seed for _, request in sample_flags.read(flags, NO_PNG)]
  assert seeds == [2**64 - 2, 2**64 - 1] and not capsys.readouterr().out


def test_each_mask_is_described_once(capsys):
  printed, base = set(), pipelines.load(TINY / 'base')
  mask = np.zeros((64, 64), np.float32)
  mask[40, 8:] = 1
  for threshold in (0.5, 0.5, 0.25):
    request = sample_request.Request(
      image='a.png', mask='m.png', mask_threshold=threshold
    )
    drawing.print_mask(request, mask, base, printed)
  line = 'm.png repaints 10.9 % of the image\n'  # 7 of 64 cells
  assert capsys.readouterr().out == 2 * line


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
    command_files.check_arrays(asked, None, flags)
  # Images are resized to a size that is set.
  files = [dataclasses.replace(asked[0], image=name) for name in 'ab']
  with pytest.raises(ValueError, match='one command for each size'):
    command_files.check_arrays(files, None, flags)
  files = [dataclasses.replace(request, width=64) for request in files]
  command_files.check_arrays(files, None, flags)


def test_noise_that_is_larger_than_memory(tmp_path, monkeypatch):
  """The file is not said to be broken."""

  def load(path):
    raise MemoryError

  monkeypatch.setattr(command_files.np, 'load', load)
  with pytest.raises(MemoryError):
    command_files.read_noise('a.npy')


def test_files_that_are_not_finite_are_named(tmp_path, flags, monkeypatch):
  """In the second batch, whose images would have the numbers of the first."""
  generate, calls = sample.generate, []

  def fail(*args, **options):
    calls.append(1)
    if len(calls) == 2:
      raise finiteness.NonFiniteError('image 1 of 2 has values')
    return generate(*args, **options)

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(generation, 'generate', fail)
  command = ['sample', f'--weights={TINY / "base"}', '--prompt=a', *SMALL]
  flags([*command, '--repeat=3', '--batch=2', '--output={i}.png'])
  with pytest.raises(ValueError, match='^2.png: image 1 of 2 has values'):
    sample.main(flags)


def test_a_variant_that_a_refiner_lacks_is_named(capsys, monkeypatch):
  calls = []

  def load_expert(*args):
    calls.append(args)
    return object.__new__(pipelines.Pipeline)

  monkeypatch.setattr(model_loading, 'load_expert', load_expert)
  options = {name: option.default for name, option in MODEL_OPTIONS.items()}
  del options['lora_dir']
  base, refiner = str(TINY / 'base'), str(TINY / 'refiner')
  options |= {'weights': base, 'refiner': refiner, 'variant': 'fp16'}
  mesh = device_mesh.make_mesh(devices=jax.local_devices()[:1])
  model_loading.load_models(mesh, options, offload=False)
  _, (_, _, used) = calls
  assert used['variant'] is None
  line = f"note: {refiner} has no variant 'fp16': it is read without\n"
  assert capsys.readouterr().out == line


def test_the_clock_separates_compiling(monkeypatch):
  now = iter([0.0, 3.0, 10.0])
  monkeypatch.setattr(phase_clock.time, 'monotonic', lambda: next(now))
  clock = phase_clock.PhaseClock()
  clock.listen('/jax/core/compile/backend_compile_duration', 1.0)
  clock.stop('loading')
  clock.listen('/jax/core/compile/backend_compile_duration', 5.0)
  clock.listen('/jax/something_else_duration', 5.0)
  clock.stop('sampling')
  assert clock.spent == {'loading': 2.0, 'sampling': 2.0}
  clock.count('/jax/compilation_cache/cache_hits')
  clock.count('/jax/compilation_cache/cache_misses')
  assert clock.summary(4) == (
    'loading 2.0 s, compiling 6.0 s (2 programs, 1 from the cache), sampling '
    '2.0 s: 0.50 s per image'
  )


def test_batches_share_their_settings():

  def ask(seed, **options):
    return sample_request.Request(prompt='a', seed=seed, **options)

  asked = [
    *(ask(0), ask(1), ask(2), ask(3, steps=4), ask(4, steps=4)),
    ask(5, steps=4, negative_prompt=''),
  ]
  found = [[r.seed for r in b] for b in request_batches.batches(asked, 2, None)]
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
  found = [len(batch) for batch in request_batches.batches(asked, 9, tokenize)]
  assert found == [2, 2, 1, 2, 1, 1, 2]
  asked = [dataclasses.replace(r, long_prompts=False) for r in asked[:5]]
  found = [len(batch) for batch in request_batches.batches(asked, 9, tokenize)]
  assert found == [5]


def test_batches_combine_one_number_of_prompts():
  tokenize = tokenizer.load()
  prompts = 'a', 'b AND c', 'c :2 AND d', 'a BREAK b', '[a:b BREAK c:1]', 'b'
  asked = [
    sample_request.Request(prompt=prompt, weighted_prompts=True)
    for prompt in prompts
  ]
  found = [len(batch) for batch in request_batches.batches(asked, 9, tokenize)]
  assert found == [1, 2, 2, 1]


def test_a_png_holds_its_request(tmp_path):
  asked = sample_request.Request(
    prompt='ein "Fuchs"\n🦊',
    seed=3,
    target_size=(8, 9),
    long_prompts=True,
    guidance_interval=(0.28, 5.0),
  )
  path = tmp_path / 'a.png'
  text = sample_request.to_png_metadata(asked, {'weights': 'W'}, (8, 8, 3))
  images.save(path, np.zeros((8, 8, 3)), text)
  fields, models, *_ = png_settings.load(path)
  asked = dataclasses.replace(asked, height=8, width=8)
  assert sample_request.Request(**fields) == asked and models == {
    'weights': 'W'
  }
  # Those at their defaults too, which may change.
  assert set(fields) == set(sample_request.FIELDS)


def test_starting_pictures(tmp_path):
  image, mask = tmp_path / 'image.png', tmp_path / 'mask.png'
  images.save(image, np.zeros((70, 99, 3)))

  def load(image, mask, size, default):
    return init_images.load(init_images.Files(image, mask, size), default)

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
