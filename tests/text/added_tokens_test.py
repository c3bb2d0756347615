"""Tokens added to CLIP's vocabulary, and learned words of several vectors."""

import json
import pickle

import numpy as np
import pytest

from sdxl_jax.text import added_tokens, clip_vocabulary, tokenizer
from tests.support import learned_words

WORDS = ['<s0>', '<s1>', 'MyTok', 'zemb', 'zemb-2', 'two words', 'é<x>']
PROMPTS = [
  'a photo of <s0><s1> in the snow',
  'A <S0>, MYTOK!mytok; xmytokx <s1>.<S1>',
  'zemb zemb-2 zembassy re-zemb! ZEMB-2x (zemb)',
  'Two  Words two\nwords twowords é<x>É<X>',
  '!!! wow!<s0>!',
  '',
  '<s0> ' * 90,
]
VARIANTS = ('added_tokens.json', 'tokenizer_config.json', 'tokenizer.json')


@pytest.fixture(scope='module')
def plain():
  return tokenizer.load()


def write(folder, name, variant):
  """Writes a tokenizer whose added tokens are in one file alone."""
  clip_vocabulary.save(folder / name, name, learned_words.describe(WORDS))
  if variant == 'tokenizer.json':
    row = tokenizer.load_row(folder, name)
    for file in ('vocab.json', 'merges.txt', 'added_tokens.json'):
      (folder / name / file).unlink()
    row.save_pretrained(folder / name)
  elif variant == 'added_tokens.json':
    file = folder / name / 'tokenizer_config.json'
    config = json.loads(file.read_text())
    config.pop('added_tokens_decoder')
    file.write_text(json.dumps(config))
  else:
    (folder / name / 'added_tokens.json').unlink()


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.filterwarnings('ignore:a prompt is longer')
def test_folders_have_the_ids_of_transformers(variant, tmp_path):
  import transformers

  for name in tokenizer.PADS:
    write(tmp_path, name, variant)
  tokens = tokenizer.load(tmp_path)(PROMPTS)
  for row, (name, pad) in enumerate(zip(tokenizer.PADS, (49407, 0))):
    live = transformers.CLIPTokenizer.from_pretrained(tmp_path / name)
    assert live.pad_token_id == pad and len(live) == 49408 + len(WORDS)
    expected = live(
      PROMPTS, padding='max_length', max_length=77, truncation=True
    ).input_ids
    np.testing.assert_array_equal(tokens[:, row], expected)
  assert tokens[0, :, 4].tolist() == [49408] * 2
  assert (tokens == 49408 + WORDS.index('zemb-2')).sum() == 4


def grown(plain, words, aliases=None):
  """(tokenizer, ids) with words for both rows."""
  return plain.with_words([words] * 2, [aliases or {}] * 2)


def ids_of(tokenize, prompt, row=0):
  ids = tokenize([prompt])[0, row].tolist()
  return ids[1 : ids.index(49407)]


def test_a_word_stands_for_all_its_vectors(plain):
  tokenize, ids = grown(plain, {'MyEmb': 3, '<x>': 1})
  assert ids == [[49408, 49409, 49410, 49411]] * 2
  assert tokenize.sizes == (49412, 49412)
  a, vectors, x = ids_of(plain, 'a'), ids[0][:3], ids_of(plain, 'x')
  for row in range(2):
    for prompt, expected in [
      ('a MyEmb', a + vectors),
      ('a MYEMB a', a + vectors + a),
      ('xmyembx', x + vectors + x),
      ('myembMyEmb<x><X>', vectors * 2 + [49411] * 2),
      ('myemb_1 a', vectors[1:2] + a),
      # Spelled out, as scripts of training write it.
      ('myemb myemb_1 myemb_2 a', vectors + a),
      ('myemb myemb_1 a', vectors + vectors[1:2] + a),
      ('a', a),
    ]:
      assert ids_of(tokenize, prompt, row) == expected, prompt
  # The tokenizer that it was made from is as it was.
  assert 49408 not in plain(['a MyEmb'])
  copy = pickle.loads(pickle.dumps(tokenize))
  np.testing.assert_array_equal(copy(PROMPTS[:3]), tokenize(PROMPTS[:3]))


def test_aliases_are_words_of_their_own(plain):
  names = {'embedding:MyEmb': 'myemb', 'file.v2': 'myemb', 'embedding:no': None}
  tokenize, _ = grown(plain, {'myemb': 2}, names)
  assert tokenize.embeddings == {'myemb', 'no'}
  word = [49408, 49409]
  a, comma = ids_of(plain, 'a'), ids_of(plain, ',')
  for prompt, expected in [
    ('a embedding:myemb, a', a + word + comma + a),
    ('EMBEDDING:MYEMB', word),
    ('file.v2 a', word + a),
    ('afile.v2', ids_of(plain, 'afile.v2')),
    ('a embedding:no a', a + a),
    ('embedding:other', ids_of(plain, 'embedding:other')),
  ]:
    assert ids_of(tokenize, prompt) == expected, prompt
  assert tokenize(['embedding:no a'])[0].max() < 49408


def test_a_name_in_the_vocabulary_is_no_alias(plain):
  tokenize, _ = grown(plain, {'<fox>': 2}, {'fox': '<fox>', 'emma': '<fox>'})
  for name in ('fox', 'emma'):
    assert ids_of(tokenize, name) == ids_of(plain, name)


@pytest.mark.parametrize(
  'words, message',
  [
    ({'cat': 1}, "'cat' is in the vocabulary"),
    ({'Cat': 2}, "'Cat' is in the vocabulary"),
    ({'<|endoftext|>': 1}, 'is in the vocabulary'),
    ({'abcx': 1, 'ABCX': 1}, "'ABCX' is in the vocabulary"),
    ({'abcx': 2, 'abcx_1': 1}, "'abcx_1' is in the vocabulary"),
    ({'abcx_1': 1, 'abcx': 1}, "'abcx_1' is in the vocabulary"),
    ({'abcx': 2, 'abcx_2': 1}, "'abcx' has 2 vectors, and abcx_2 is another"),
    ({' ': 1}, 'name is empty'),
  ],
)
def test_words_that_cannot_be_added(plain, words, message):
  with pytest.raises(ValueError, match=message):
    grown(plain, words)


def test_vectors_of_a_word_stay_in_one_chunk(plain):
  tokenize, _ = grown(plain, {'myemb': 8})
  word, fox = list(range(49408, 49416)), ids_of(plain, 'fox')
  for before, lengths in ((66, [75]), (67, [75, 1]), (68, [68, 9])):
    tokens, weights = tokenize.chunks(
      ['fox ' * before + '(myemb:1.5) fox'], weighted=True, limit=None
    )
    found = []
    for chunk, strength in zip(tokens[0, :, 0], weights[0, :, 0]):
      end = chunk.tolist().index(49407)
      found.append(chunk[1:end].tolist())
      learned = (chunk >= 49408) & (chunk <= 49415)
      np.testing.assert_array_equal(strength, np.where(learned, 1.5, 1))
    assert [len(ids) for ids in found] == lengths
    assert sum(found, []) == fox * before + word + fox
  # What is cut at the end is cut as diffusers does.
  with pytest.warns(tokenizer.PromptTruncatedWarning, match="cut: 'myemb fox'"):
    tokens = tokenize(['fox ' * 70 + 'myemb fox'])
  assert tokens[0, 0, 71:].tolist() == [*word[:5], 49407]


def test_tokens_without_embeddings(plain):
  added = dict.fromkeys(tokenizer.PADS, learned_words.describe(['<s0>']))
  for sizes, row in (((49408, 49409), 'tokenizer'), ((None, 5), 'tokenizer_2')):
    tokenize = tokenizer.load(None, added, sizes)
    with pytest.raises(ValueError, match=f'{row} has the token .* only'):
      tokenize(['a <s0>'])
  tokenize = tokenizer.load(None, added, (49409, 49409))
  assert tokenize(['a <s0>'])[0, 0, 2] == 49408


def test_described_and_restored():
  known, _ = clip_vocabulary.load()
  described = learned_words.describe(WORDS)
  restored = tokenizer.load(None, dict.fromkeys(tokenizer.PADS, described))
  for row in restored.rows:
    assert added_tokens.describe(row, known) == described
  # A piece of words, which is a token of its own then.
  piece = [{'id': known['emb'], 'content': 'emb'} | learned_words.SETTINGS]
  restored = tokenizer.load(None, {'tokenizer_2': piece})
  assert added_tokens.describe(restored.rows[1], known) == piece
  assert ids_of(restored, 'xembx', 1)[1] == known['emb']
  with pytest.raises(ValueError, match="'<s1>' has the id 49409, and the next"):
    tokenizer.load(None, {'tokenizer': described[1:]})
