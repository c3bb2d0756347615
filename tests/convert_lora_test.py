"""LoRA files merged into models, and converted to other key formats."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.sampling import pipelines
from sdxl_jax.weights import read_options, safetensors_file
from sdxl_jax.weights.diffusers import folder_reader
from sdxl_jax.weights.lora import lora_file, low_rank
from tests.support import folders, golden_sets
from tests.support.conversions import check_same, run, run_lora, tensors

TINY = golden_sets.SETS[0] / 'tiny'
BASE = TINY / 'base'
KOHYA, PEFT = (TINY / 'lora' / f'{n}.safetensors' for n in ('kohya', 'peft'))


@pytest.mark.parametrize('to', ['diffusers', 'single_file', 'orbax'])
@pytest.mark.parametrize('loras', [[KOHYA], [KOHYA, f'{PEFT}:-0.5']], ids=len)
def test_added_to_a_model(tmp_path, close, to, loras):
  """Converting merges as loading does."""
  loras = [str(spec) for spec in loras]
  run(BASE, tmp_path / 'merged', to, loras=loras)
  converted = pipelines.load(tmp_path / 'merged').params
  loaded = pipelines.load(BASE, loras=loras).params
  jax.tree.map(lambda a, b: close(a, b, 1e-6), converted, loaded)
  plain = pipelines.load(BASE).params
  for net in 'unet', 'text_encoder', 'text_encoder_2':
    equal = jax.tree.map(np.array_equal, converted[net], plain[net])
    assert not jax.tree.all(equal), net


def test_added_and_then_rounded(tmp_path):
  settings = dict(loras=[str(KOHYA)], dtype='bfloat16')
  run(BASE, tmp_path / 'merged', 'diffusers', **settings)
  _, rounded = folders.load_component(tmp_path / 'merged', 'unet')
  exact = pipelines.load(BASE, loras=[str(KOHYA)]).params['unet']
  ulp = float(jnp.finfo(jnp.bfloat16).eps)
  for a, b in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact)):
    np.testing.assert_allclose(a, b, rtol=0.51 * ulp, atol=1e-30)
  stored = folder_reader.open_model(tmp_path / 'merged').net('unet').tensors()
  assert {t.dtype for t in stored.values()} == {jnp.dtype('bfloat16')}


def test_added_to_a_net_that_lacks_its_layers(tmp_path):
  with pytest.raises(ValueError, match='belong to no layer'):
    run(TINY / 'refiner', tmp_path / 'x', 'orbax', loras=[str(KOHYA)])
  with pytest.raises(FileNotFoundError, match='LoRA none: no such file'):
    run(BASE, tmp_path / 'x', 'orbax', loras=['none'])
  assert not list(tmp_path.iterdir())


def test_there_and_back(tmp_path):
  """kohya to kohya keeps every number; to others and back every product."""
  path = tmp_path / 'a.safetensors'
  printed = run_lora(KOHYA, path, base=BASE)
  assert 'a LoRA in the names of kohya, ' in printed
  assert f'wrote {path}' in printed
  check_same(tensors(path), tensors(KOHYA))
  metadata = safetensors_file.load(path).metadata
  assert safetensors_file.load(KOHYA).metadata.items() <= metadata.items()
  assert metadata['modelspec.title'] == 'a'
  for key_format in ('diffusers', 'diffusers_old', 'kohya_diffusers'):
    other, back = (tmp_path / f'{key_format}{i}.safetensors' for i in (1, 2))
    run_lora(KOHYA, other, key_format, base=BASE)
    run_lora(other, back, base=BASE)
    check_products(back, KOHYA)
  check_same(tensors(back), tensors(KOHYA))  # this one has alphas, too


def check_products(path, expected_path):
  """Asserts that two files have the same factors, alpha multiplied in."""
  shapes = pipelines.load(BASE).params
  actual = lora_file.load(path, shapes).factors
  expected = lora_file.load(expected_path, shapes).factors
  assert actual.keys() == expected.keys()
  for key, b in expected.items():
    a = actual[key]
    np.testing.assert_array_equal(a.down, b.down)
    np.testing.assert_array_equal(a.scale * a.up, b.scale * b.up)


def test_shorter_numbers(tmp_path):
  path = tmp_path / 'half.safetensors'
  run_lora(PEFT, path, 'diffusers', base=BASE, dtype='float16', title='Mine')
  half = {n: x.astype(np.float16) for n, x in tensors(PEFT).items()}
  check_same(tensors(path), half)
  assert safetensors_file.load(path).metadata['modelspec.title'] == 'Mine'


def test_refused(tmp_path):
  target = tmp_path / 'x.safetensors'
  with pytest.raises(ValueError, match='another base model'):
    run_lora(KOHYA, target)  # SDXL itself
  printed = run_lora(KOHYA, target, base=BASE, dry_run=True)
  assert 'wrote' not in printed and not target.exists()
  target.write_text('mine')
  with pytest.raises(FileExistsError, match='--overwrite'):
    run_lora(KOHYA, target, base=BASE)
  assert target.read_text() == 'mine'


@pytest.mark.parametrize(
  'name, settings',
  [
    ('vae', {'vae': 'x'}),
    ('prediction', {'options': read_options.ReadOptions(prediction='v')}),
    ('source_variant', {'options': read_options.ReadOptions('fp16')}),
    ('variant', {'variant': 'fp16'}),
  ],
)
def test_options_of_models_are_refused(name, settings, tmp_path):
  with pytest.raises(ValueError, match=f'--{name}=.* is of models'):
    run_lora(KOHYA, tmp_path / 'x.safetensors', base=BASE, **settings)


def test_joined_resized_and_extracted(tmp_path, close):
  """Two files as one, and the same from the model that they change."""
  joined, fewer, tuned, extracted = (
    tmp_path / f'{name}.safetensors' for name in ('j', 'f', 't', 'e')
  )
  printed = run_lora(f'{KOHYA}:0.5', joined, base=BASE, loras=[str(PEFT)])
  assert 'layers of LoRA in text_encoder and text_encoder_2 and unet' in printed
  shapes = pipelines.load(BASE).params
  made = lora_file.load(joined, shapes)
  first, second = (lora_file.load(path, shapes) for path in (KOHYA, PEFT))
  key = next(k for k in first.factors if k in second.factors)
  shape = len(first.factors[key].up), len(first.factors[key].down[0])
  expected = 0.5 * first.factors[key].product(shape)
  expected += second.factors[key].product(shape)
  close(made.factors[key].product(shape), expected, 1e-6)
  # To rank 2.
  ranks = low_rank.Ranks(2)
  run_lora(joined, fewer, base=BASE, ranks=ranks)
  smaller = lora_file.load(fewer, shapes)
  assert {len(f.down) for f in smaller.factors.values()} == {2}
  assert smaller.metadata['ss_network_dim'] == '2'
  assert smaller.metadata['ss_training_comment'].startswith('dimension is resi')
  # From the model with them, as many ranks as they have.
  run(BASE, tuned, 'single_file', loras=[f'{KOHYA}:0.5', str(PEFT)])
  settings = dict(base=BASE, ranks=low_rank.Ranks(8))
  printed = run_lora(tuned, extracted, **settings)
  assert 'rank 8' in printed or 'rank 1 to 8' in printed
  found = lora_file.load(extracted, shapes)
  assert found.factors.keys() == made.factors.keys()
  close(found.factors[key].product(shape), expected, 1e-5)


def test_what_cannot_be_extracted(tmp_path):
  target, ranks = tmp_path / 'x.safetensors', low_rank.Ranks(4)
  with pytest.raises(ValueError, match='pass the model before training as --b'):
    run_lora(BASE, target, ranks=ranks)
  with pytest.raises(ValueError, match='no kernel of the two models differs'):
    run_lora(BASE, target, base=BASE, ranks=ranks)
  with pytest.raises(ValueError, match='--rank=4 is of --to=lora'):
    run(BASE, target, 'single_file', ranks=ranks)
  assert not list(tmp_path.iterdir())


def test_the_command(tmp_path):
  command = [sys.executable, '-m', 'sdxl_jax.convert']
  target = tmp_path / 'x.safetensors'
  flags = ['--to=lora', '--dialect=diffusers', f'--base={BASE}']
  done = subprocess.run(
    [*command, KOHYA, target, *flags], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert 'to ' in done.stdout and 'in the names of diffusers' in done.stdout
  assert all(name.endswith('.weight') for _, name in tensors(target))
