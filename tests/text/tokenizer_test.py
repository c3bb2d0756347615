"""Token ids against transformers', from folders and from our vocabulary."""

import concurrent.futures
import json
import pickle
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest

from sdxl_jax.text import chunking, tokenizer

# What load() reads, and the rows of it that a folder brings.
FOLDERS = [None, 'tiny/base', 'tiny/refiner']


def load(golden, folder):
  return tokenizer.load(folder and golden / folder)


@pytest.mark.parametrize('folder', FOLDERS)
def test_ids_are_those_of_transformers(golden, folder):
  path = golden / 'tokenizer' / 'strings.json'
  strings = json.loads(path.read_text())['strings']
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', tokenizer.PromptTruncatedWarning)
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
          warnings.simplefilter('ignore', tokenizer.PromptTruncatedWarning)
          np.testing.assert_array_equal(tokenize(prompts)[:, row], expected)


def test_a_long_prompt_warns_of_what_is_cut():
  tokenize = tokenizer.load()
  words = [f'word{i}' for i in range(10)] * 10  # two tokens each
  with pytest.warns(
    tokenizer.PromptTruncatedWarning, match="cut: '7 word8 word9"
  ) as caught:
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
  with pytest.raises(FileNotFoundError, match='absent not found'):
    tokenizer.load(tmp_path / 'absent')
  (tmp_path / 'tokenizer').mkdir()
  (tmp_path / 'tokenizer' / 'vocab.json').write_text('{}')
  with pytest.raises(FileNotFoundError, match='lacks merges.txt'):
    tokenizer.load(tmp_path)


def test_imports_neither_torch_nor_jax():
  code = (
    'import sys; from sdxl_jax.text import tokenizer;'
    "assert 'transformers' not in sys.modules;"
    "tokenizer.load()(['a']);"
    "assert not {'torch', 'jax', 'tensorflow'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def words_of(tokenize, row, words):
  """A row's ids of each word, one by one."""
  return [tokenize.rows[row](word)['input_ids'][1:-1] for word in words]


def content(ids):
  """Ids of one chunk between its start and its first end, and the rest."""
  end = ids.tolist().index(49407)
  assert ids[0] == 49406
  return ids[1:end].tolist(), ids[end + 1 :].tolist()


@pytest.mark.parametrize('folder', FOLDERS)
def test_weights_lie_on_the_tokens_of_their_words(golden, folder):
  tokenize = load(golden, folder)
  # '!!!' is one token to the first row and three to the second.
  prompt = 'a (photorealisticish:1.5) [bird] (!!! (émigré:3):2)\n(日本) end'
  words = ['a', 'photorealisticish', 'bird', '!!!', 'émigré', '日本', 'end']
  weights = [1, 1.5, 1 / 1.1, 2, 6, 1.1, 1]
  tokens, found = tokenize.chunks([prompt, 'a'], weighted=True)
  assert tokens.shape == found.shape == (2, 1, 2, 77)
  assert tokens.dtype == np.int32 and found.dtype == np.float32
  np.testing.assert_array_equal(tokens[0, 0], tokenize([' '.join(words)])[0])
  lengths = []
  for row in range(2):
    ids = words_of(tokenize, row, words)
    assert content(tokens[0, 0, row])[0] == sum(ids, [])
    spelled = [w for w, piece in zip(weights, ids) for _ in piece]
    expected = np.float32([1, *spelled] + [1] * (76 - len(spelled)))
    np.testing.assert_array_equal(found[0, 0, row], expected)
    lengths.append([len(piece) for piece in ids])
  assert lengths[0][3] == 1 and lengths[1][3] == 3
  assert min(lengths[0][1], lengths[0][4], lengths[0][5]) > 1
  assert (found[1] == 1).all()


def test_marks_are_text_unless_asked_for():
  tokenize = tokenizer.load()
  tokens, weights = tokenize.chunks(['a (red:1.3) fox'])
  assert (weights == 1).all()
  assert content(tokens[0, 0, 0])[0] == sum(
    words_of(tokenize, 0, 'a ( red : 1 . 3 ) fox'.split()), []
  )
  with pytest.warns(match="the prompt 'a .red'"):
    tokens, weights = tokenize.chunks(['a fox'], ['a (red'], weighted=True)
  assert (weights == 1).all()
  assert content(tokens[0, 0, 1])[0] == words_of(tokenize, 1, ['a (red'])[0]


@pytest.mark.parametrize(
  'count, lengths',
  [(0, [0]), (75, [75]), (76, [75, 1]), (150, [75, 75]), (200, [75, 75, 50])],
)
@pytest.mark.parametrize('folder', FOLDERS)
def test_long_prompts_go_on_in_chunks(golden, folder, count, lengths):
  tokenize = load(golden, folder)
  words = ['red', 'fox', 'on', 'snow'] * 50  # one token each
  prompts = [' '.join(words[:count]), 'a fox']
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    tokens, weights = tokenize.chunks(prompts, limit=None)
  assert tokens.shape == weights.shape == (2, len(lengths), 2, 77)
  assert (weights == 1).all()
  first = [' '.join(words[: min(count, 75)]), 'a fox']
  np.testing.assert_array_equal(tokens[:, 0], tokenize(first))
  for empty in tokens[1, 1:]:
    np.testing.assert_array_equal(empty, tokenize([''])[0])
  for row, pad in enumerate((49407, 0)):
    read = [content(chunk[row]) for chunk in tokens[0]]
    assert [len(ids) for ids, _ in read] == lengths
    assert sum((ids for ids, _ in read), []) == sum(
      words_of(tokenize, row, words[:count]), []
    )
    for ids, rest in read:
      assert rest == [pad] * (75 - len(ids))


def test_a_chunk_ends_where_a_word_does():
  tokenize = tokenizer.load()

  def read(prompt):
    return [
      [content(chunk)[0] for chunk in row]
      for row in tokenize.chunks([prompt], limit=None)[0][0].swapaxes(0, 1)
    ]

  # The word of four tokens would lie across the end of the first chunk.
  parts = words_of(tokenize, 0, ['fox', 'photorealisticish'])
  assert [len(p) for p in parts] == [1, 4], parts
  cases = (70, [75]), (71, [75, 1]), (72, [72, 5]), (74, [74, 5]), (75, [75, 5])
  for before, lengths in cases:
    for row in read('fox ' * before + 'photorealisticish fox'):
      assert [len(ids) for ids in row] == lengths
      assert sum(row, []) == parts[0] * before + parts[1] + parts[0]
  # A word longer than a chunk is cut anyway, behind what comes before it.
  (endless,) = words_of(tokenize, 0, ['qz' * 200])
  assert len(endless) > 150
  for row in read('fox ' + 'qz' * 200):
    assert [len(ids) for ids in row][:3] == [1, 75, 75]
    assert sum(row, []) == parts[0] + endless


def test_rows_are_divided_each_by_itself():
  tokenize = tokenizer.load()
  tokens, weights = tokenize.chunks(
    ['(wow!!!:2) ' * 30], weighted=True, limit=None
  )
  lengths = [[len(content(ids)[0]) for ids in row] for row in tokens[0]]
  assert lengths == [[60, 75], [0, 45]]
  np.testing.assert_array_equal(tokens[0, 1, 0], tokenize([''])[0, 0])
  for found, ids in zip(weights[0].reshape(-1, 77), sum(lengths, [])):
    assert found.tolist() == [1.0] + [2.0] * ids + [1.0] * (76 - ids)


def test_any_text_is_divided_without_loss():
  tokenize, choose = tokenizer.load(), random.Random(0)
  letters = 'ab!, 1\n\té\u0301İ日ﬁ½\U0001f600\ufdfa<|>\'"\x00\u200d'
  texts = [''.join(choose.choices(letters, k=60 * (i % 4))) for i in range(80)]

  def escape(text):
    return ''.join('\\' + c if c in ':()[]\\' else c for c in text)

  marked = [f'({escape(t)}:2)' for t in texts]
  tokens, weights = tokenize.chunks(texts, limit=None)
  weighed, twice = tokenize.chunks(marked, weighted=True, limit=None)
  np.testing.assert_array_equal(tokens, weighed)
  for text, chunks, found in zip(texts, tokens, twice):
    for row in range(2):
      read = [content(ids)[0] for ids in chunks[:, row]]
      assert sum(read, []) == words_of(tokenize, row, [text])[0]
      for ids, w in zip(read, found[:, row]):
        np.testing.assert_array_equal(w[1 : 1 + len(ids)], 2)
        assert (w == 2).sum() == len(ids)


def test_captions_are_cut_in_silence():
  tokenize = tokenizer.load()
  words = [f'word{i}' for i in range(10)] * 10  # two tokens each
  texts = [' '.join(words), 'short', '']
  with pytest.warns(tokenizer.PromptTruncatedWarning) as caught:
    expected = tokenize(texts)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    tokens, cut = tokenize.captions(texts)
  assert tokens.dtype == np.int32
  np.testing.assert_array_equal(tokens, expected)
  assert cut[1:] == ['', ''] and cut[0].startswith('7 word8 word9')
  assert f'cut: {cut[0]!r}' in str(caught[0].message)


@pytest.mark.parametrize('count', [2, 3])
def test_captions_have_the_chunks_of_long_prompts(count):
  tokenize = tokenizer.load()
  words = ['red', 'fox', 'on', 'snow'] * 60  # one token each
  lengths = (0, 3, 75, 76, 150, 151, 225, 226, 240)
  texts = [' '.join(words[:n]) for n in lengths]
  tokens, cut = tokenize.captions(texts, count)
  assert tokens.shape == (len(texts), count, 2, 77)
  for n, text, found, lost in zip(lengths, texts, tokens, cut):
    assert lost == ' '.join(words[75 * count : n])
    # 75 words a chunk, then chunks of ''.
    for i, chunk in enumerate(found):
      piece = ' '.join(words[:n][75 * i : 75 * (i + 1)])
      np.testing.assert_array_equal(chunk, tokenize([piece])[0])
    whole, _ = tokenize.chunks([text], limit=None)
    shared = whole[0, :count]
    np.testing.assert_array_equal(found[: len(shared)], shared)
  text = ' '.join(words[:100])
  assert tokenize.decode(tokenize.captions([text], count)[0]) == [text]


def test_the_last_chunk_takes_parts_of_words():
  """As the only one does; the chunks before it end where a word does."""
  tokenize = tokenizer.load()
  fox, word = words_of(tokenize, 0, ['fox', 'photorealisticish'])
  assert len(word) == 4
  for before, lengths, whole in ((72, [72, 75], 1), (147, [75, 75], 19)):
    text = 'fox ' * before + 'photorealisticish ' * 20
    tokens, (cut,) = tokenize.captions([text], 2)
    read = [content(chunk)[0] for chunk in tokens[0, :, 0]]
    assert [len(ids) for ids in read] == lengths
    ids = fox * before + word * 20
    assert sum(read, []) == ids[: sum(lengths)]
    assert cut == 'ish ' + 'photorealisticish ' * whole


def test_what_either_row_cuts_is_cut():
  tokenize = tokenizer.load()
  _, (cut, none) = tokenize.captions(['wow!!! ' * 30, 'a'])  # 60 and 120 tokens
  assert cut.count('wow') > 10 and none == ''


def test_lengthen():
  tokenize = tokenizer.load()
  tokens, weights = tokenize.chunks(['a (fox)', 'b'], weighted=True)
  longer, ones = chunking.lengthen(tokens, weights, tokenize.empty, 3)
  np.testing.assert_array_equal(longer[:, :1], tokens)
  np.testing.assert_array_equal(
    longer[:, 1:], tokenize([''] * 4).reshape(2, 2, 2, 77)
  )
  np.testing.assert_array_equal(ones[:, :1], weights)
  assert (ones[:, 1:] == 1).all() and ones.dtype == np.float32
  same, _ = chunking.lengthen(tokens, weights, tokenize.empty, 1)
  np.testing.assert_array_equal(same, tokens)
