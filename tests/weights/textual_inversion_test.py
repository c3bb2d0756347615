"""Files of learned words: every layout, and what is refused with which words"""

import collections
import pickle
import re

import numpy as np
import pytest

from sdxl_jax.weights import (
  stored_array,
  textual_inversion,
  torch_pickle,
)
from tests.support import learned_words
from tests.support.learned_words import WIDTHS, save

BOTH = learned_words.vectors(3)
L, G = BOTH['clip_l'], BOTH['clip_g']
ONE = {'text_encoder': L}
EACH = {'text_encoder': L, 'text_encoder_2': G}
LAYOUTS = {
  'clip_l, clip_g': (BOTH, 'style', EACH),
  'single vectors': (
    {'clip_l': L[0], 'clip_g': G[0]},
    'style',
    {'text_encoder': L[:1], 'text_encoder_2': G[:1]},
  ),
  'with T5': (BOTH | {'t5xxl': np.zeros((2, 4096), 'f4')}, 'style', EACH),
  'text_encoders': (
    {'text_encoders_0': L, 'text_encoders_1': G},
    'style',
    EACH,
  ),
  'of bigG alone': ({'clip_g': G}, 'style', {'text_encoder_2': G}),
  'emb_params': ({'emb_params': L}, 'style', ONE),
  'A1111 as safetensors': ({'string_to_param.*': L}, 'style', ONE),
  'emb_params of bigG': ({'emb_params': G}, 'style', {'text_encoder_2': G}),
  'diffusers': ({'<cat-toy>': L}, '<cat-toy>', ONE),
  'diffusers, float16': (
    {'<cat-toy>': np.float16(L)},
    '<cat-toy>',
    {'text_encoder': np.float32(np.float16(L))},
  ),
  'diffusers, one vector': (
    {'<cat-toy>': L[0]},
    '<cat-toy>',
    {'text_encoder': L[:1]},
  ),
}


def check(words, expected):
  """Compares words with {name: {text encoder: vectors}}, in order."""
  assert [word.name for word in words] == list(expected)
  for word in words:
    assert word.vectors.keys() == expected[word.name].keys()
    for name, array in expected[word.name].items():
      assert word.vectors[name].dtype == np.float32
      np.testing.assert_array_equal(word.vectors[name], array)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(layout, tmp_path):
  tensors, name, expected = LAYOUTS[layout]
  file = save(tmp_path / 'style.safetensors', tensors)
  (word,) = words = textual_inversion.load([file], WIDTHS)
  check(words, {name: expected})
  assert word.aliases == ('style', 'style.safetensors')
  (word,) = words = textual_inversion.load([f'<new>={file}'], WIDTHS)
  check(words, {'<new>': expected})
  assert word.aliases == ()


def pickles(torch):
  """{layout: (what torch.save gets, name)} of one text encoder."""
  tensor = torch.tensor(L)
  parameter = torch.nn.Parameter(tensor)
  facts = {'string_to_token': {'*': 265}, 'step': 500, 'sd_checkpoint': None}
  return {
    'a1111': (
      facts | {'string_to_param': {'*': tensor}, 'name': 'learned'},
      'learned',
    ),
    'a1111, without a name': (facts | {'string_to_param': {'*': tensor}}, 'x'),
    'original code': (
      {
        'string_to_token': {'*': torch.tensor(265)},
        'string_to_param': torch.nn.ParameterDict({'*': parameter}),
        'name': '*',
      },
      'x',
    ),
    'diffusers': ({'<cat-toy>': parameter}, '<cat-toy>'),
    'ordered': (collections.OrderedDict({'<cat-toy>': tensor}), '<cat-toy>'),
    'emb_params': ({'emb_params': tensor}, 'x'),
    'tensor': (tensor, 'x'),
    'half': ({'<cat-toy>': tensor.half()}, '<cat-toy>'),
  }


@pytest.mark.parametrize('older', [False, True])
def test_pickles(older, tmp_path):
  torch = pytest.importorskip('torch')
  path = tmp_path / 'x.pt'
  for layout, (tree, name) in pickles(torch).items():
    torch.save(tree, path, _use_new_zipfile_serialization=not older)
    words = textual_inversion.load([str(path)], WIDTHS)
    expected = np.float32(np.float16(L)) if layout == 'half' else L
    check(words, {name: {'text_encoder': expected}})


def test_bundles_in_a_lora_file(tmp_path):
  tensors = {f'bundle_emb.my.style.{n}': x for n, x in BOTH.items()}
  tensors['bundle_emb.old.string_to_param.*'] = L
  tensors['lora_unet_conv_in.lora_down.weight'] = np.zeros((2, 4, 3, 3), 'f4')
  file = save(tmp_path / 'lora.safetensors', tensors)
  words = textual_inversion.load([file], WIDTHS)
  check(words, {'my.style': EACH, 'old': ONE})
  assert {word.aliases for word in words} == {()}
  with pytest.raises(ValueError, match='2 words .my.style, old., and a name'):
    textual_inversion.load([f'new={file}'], WIDTHS)


def test_two_files_of_one_word(tmp_path):
  """diffusers writes SDXL's text encoders into two files of one folder."""
  first = save(tmp_path / 'learned_embeds.safetensors', {'<cat>': L})
  check(textual_inversion.load([str(tmp_path)], WIDTHS), {'<cat>': ONE})
  second = save(tmp_path / 'learned_embeds_2.safetensors', {'<cat>': G})
  for specs in ([str(tmp_path)], [first, second]):
    check(textual_inversion.load(specs, WIDTHS), {'<cat>': EACH})
  with pytest.raises(ValueError, match="both have the word '<cat>' for text_e"):
    textual_inversion.load([first, second, first], WIDTHS)
  specs = [first, f'<dog>={first}']
  check(textual_inversion.load(specs, WIDTHS), {'<cat>': ONE, '<dog>': ONE})


def test_a_refiner_takes_what_is_for_bigg(tmp_path):
  widths = {'text_encoder_2': 16}
  files = [
    save(tmp_path / f'{i}.safetensors', tensors)
    for i, tensors in enumerate(
      [BOTH, {'<old>': L}, {'<big>': G}, {'clip_l': L}]
    )
  ]
  big = {'text_encoder_2': G}
  words = textual_inversion.load(files, widths)
  check(words, {'0': big, '<old>': {}, '<big>': big, '3': {}})


def test_a_refiner_refuses_words_of_other_models(tmp_path):
  for width, named in (1024, 'such as Stable D'), (4096, 'T5'), (20, 'another'):
    file = save(tmp_path / 'x.safetensors', {'<cat>': np.ones((2, width))})
    with pytest.raises(ValueError, match=f'have {width} numbers.*{named}'):
      textual_inversion.load([file], {'text_encoder_2': 16})


@pytest.mark.parametrize('suffix', ['.safetensors', '.ckpt'])
def test_what_is_no_word_is_not_read(suffix, tmp_path, monkeypatch):
  """A checkpoint that is passed by mistake may have gigabytes."""
  tensors = {f'model.{i}.weight': np.zeros((3, 5), 'f4') for i in range(3)}
  path = tmp_path / f'model{suffix}'
  if suffix == '.ckpt':
    torch = pytest.importorskip('torch')
    state = {n: torch.tensor(x) for n, x in tensors.items()}
    torch.save({'state_dict': state}, path)
  else:
    save(path, tensors)
  reads = []
  monkeypatch.setattr(stored_array, 'read_array', lambda *a: reads.append(a))
  monkeypatch.setattr(torch_pickle, 'read_stored', lambda *a: reads.append(a))
  with pytest.raises(ValueError, match='it is no textual inversion: '):
    textual_inversion.load([str(path)], WIDTHS)
  assert not reads


def test_a_word_without_vectors(tmp_path):
  path = tmp_path / 'x.pt'
  path.write_bytes(pickle.dumps({'string_to_param': {}, 'name': 'x'}))
  with pytest.raises(ValueError, match="x.pt: it has no vectors for SDXL's"):
    textual_inversion.load([str(path)], WIDTHS)


def test_a_pickle_with_nan_is_named_once(tmp_path):
  path = tmp_path / 'x.pt'
  path.write_bytes(pickle.dumps({'string_to_param': {'*': NAN}}))
  with pytest.raises(ValueError, match=r'\* contains NaN or inf') as caught:
    textual_inversion.load([str(path)], WIDTHS)
  assert str(caught.value).count('x.pt') == 1


NAN = L.copy()
NAN[1, 2] = np.nan
REFUSED = {
  'another width': (
    {'<cat>': np.zeros((2, 1024), 'f4')},
    'have 1024 numbers, and the widths of the model are text_encoder 12 and '
    'text_encoder_2 16: it was trained for another model, such as Stable '
    'Diffusion 2',
  ),
  'another width of one': (
    {'clip_l': L, 'clip_g': L},
    r'\(clip_g\) have 12 numbers, and the widths',
  ),
  'NaN': ({'clip_l': NAN, 'clip_g': G}, 'clip_l contains NaN or infinity'),
  'beyond float32': (
    {'emb_params': np.float64(L) * 1e300},
    'overflows float32: re-down',
  ),
  'T5 alone in a bundle': (
    {'bundle_emb.x.t5': np.zeros((2, 4096), 'f4')},
    'it has no vectors for',
  ),
  'infinity': ({'emb_params': NAN * 0 + np.inf}, 'contains NaN or infinity'),
  'whole numbers': ({'emb_params': np.zeros((2, 12), 'i4')}, 'no tensor of fl'),
  'three axes': ({'clip_l': L[None]}, r'has the shape \(1, 3, 12\)'),
  'no vector': ({'clip_l': L[:0]}, r'has the shape \(0, 12\)'),
  'outputs': (
    BOTH | {'clip_l_out': L},
    "its tensor 'clip_l_out' is not known: it replaces the output .* Use",
  ),
  'twice': (BOTH | {'emb_params': L}, 'it has two tensors for text_encoder'),
  'a LoRA': (
    {'lora_unet_a.lora_down.weight': L, 'lora_unet_a.alpha': np.array(1.0)},
    'it is no textual inversion: 1 of 2 entries .*lora_unet_a.alpha',
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(case, tmp_path):
  tensors, message = REFUSED[case]
  file = save(tmp_path / 'x.safetensors', tensors)
  with pytest.raises(ValueError, match=message) as caught:
    textual_inversion.load([file], WIDTHS)
  assert f'{file}: ' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_paths(tmp_path):
  with pytest.raises(FileNotFoundError, match='embedding .*no.pt: no such'):
    textual_inversion.load([str(tmp_path / 'no.pt')], WIDTHS)
  # A file whose name has '=' needs no NAME.
  file = save(tmp_path / 'a=b.safetensors', BOTH)
  assert textual_inversion.parse(file) == (None, file)
  assert textual_inversion.parse(f'c={file}') == ('c', file)
  check(textual_inversion.load([file], WIDTHS), {'a=b': EACH})
  (tmp_path / 'x.pt').write_bytes(b'\x80\x02cos\nsystem\n.')
  with pytest.raises(ValueError, match=re.escape('x.pt is not a pickle')):
    textual_inversion.load([str(tmp_path / 'x.pt')], WIDTHS)
