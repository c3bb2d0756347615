"""Token ids against transformers', from folders and from our vocabulary."""

import concurrent.futures
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

from sdxl_jax.conditioning import tokenizer

# What load() reads, and the rows of it that a folder brings.
FOLDERS = [None, 'tiny/base', 'tiny/refiner']


def load(golden, folder):
  return tokenizer.load(folder and golden / folder)


@pytest.mark.parametrize('folder', FOLDERS)
def test_ids_are_those_of_transformers(golden, folder):
  path = golden / 'tokenizer' / 'strings.json'
  strings = json.loads(path.read_text())['strings']
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', tokenizer.PromptCut)
    tokens = load(golden, folder)([s['text'] for s in strings])
  assert tokens.dtype == np.int32 and tokens.shape == (len(strings), 2, 77)
  for string, actual in zip(strings, tokens):
    first = string['tokenizer']
    second = string['tokenizer_2'] or first
    for row, ids, pad in zip(actual, (first, second), (49407, 0)):
      ids = ids if len(ids) <= 77 else ids[:76] + [49407]
      assert row.tolist() == ids + [pad] * (77 - len(ids)), string['text']


def test_ids_of_the_pipelines(golden):
  fixtures = golden / 'tiny' / 'fixtures'
  arrays = np.load(fixtures / 'encode_prompt.npz')
  tokenize = tokenizer.load(golden / 'tiny' / 'base')
  for case in json.loads((fixtures / 'encode_prompt.json').read_text())[
    'cases'
  ]:
    for name, row in (('tokenizer', 0), ('tokenizer_2', 1)):
      expected = arrays.get(f'{case["case"]}/ids/{name}/prompt')
      prompts = case['kwargs']['prompt']
      if row and 'prompt_2' in case['kwargs']:
        prompts = case['kwargs']['prompt_2']
      if expected is not None:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        with warnings.catch_warnings():
          warnings.simplefilter('ignore', tokenizer.PromptCut)
          np.testing.assert_array_equal(tokenize(prompts)[:, row], expected)


def test_a_long_prompt_warns_of_what_is_cut():
  tokenize = tokenizer.load()
  words = [f'word{i}' for i in range(10)] * 10  # two tokens each
  with pytest.warns(tokenizer.PromptCut, match="cut: '7 word8 word9") as caught:
    tokens = tokenize([' '.join(words), 'short'])
  assert len(caught) == 1
  assert (tokens[0, :, -1] == 49407).all()
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    tokenize([' '.join(words[:37])])  # 75 tokens, start and end: it fits


def test_second_prompt():
  tokenize = tokenizer.load()
  tokens = tokenize(['one'], ['two!'])
  np.testing.assert_array_equal(tokens[:, 0], tokenize(['one'])[:, 0])
  np.testing.assert_array_equal(tokens[:, 1], tokenize(['two!'])[:, 1])
  with pytest.raises(TypeError, match='list of strings'):
    tokenize('one')
  with pytest.raises(ValueError, match='1 prompts but 2 prompts_2'):
    tokenize(['one'], ['two', 'three'])


def test_pickled_and_shared_by_threads(golden):
  tokenize = load(golden, 'tiny/base')
  prompts = [['a bird!'], ['two words', 'x' * 70]] * 20
  expected = [tokenize(p) for p in prompts]
  copy = pickle.loads(pickle.dumps(tokenize))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for tokens, reference in zip(pool.map(copy, prompts), expected):
      np.testing.assert_array_equal(tokens, reference)


def test_incomplete_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match='absent is not a folder'):
    tokenizer.load(tmp_path / 'absent')
  (tmp_path / 'tokenizer').mkdir()
  (tmp_path / 'tokenizer' / 'vocab.json').write_text('{}')
  with pytest.raises(FileNotFoundError, match='lacks merges.txt'):
    tokenizer.load(tmp_path)


def test_imports_neither_torch_nor_jax():
  code = (
    'import sys; from sdxl_jax.conditioning import tokenizer;'
    "assert 'transformers' not in sys.modules;"
    "tokenizer.load()(['a']);"
    "assert not {'torch', 'jax', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], check=True)
