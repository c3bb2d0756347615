"""Words and templates that cannot be learned, and how words begin."""

import re

import jax
import numpy as np
import pytest

from sdxl_jax.checkpoints import run_words
from sdxl_jax.distributed import device_mesh
from sdxl_jax.models import from_config, learned_vectors
from sdxl_jax.text import tokenizer
from sdxl_jax.training import (
  cache_settings,
  config_diff,
  config_validation,
  run_setup,
  word_start,
)
from tests.support import learned_words, word_runs

TOY = word_runs.WORDS['toy']
ONE = {'toy': TOY}


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'trained': ('lora',)}, "config.words has ['style', 'toy']: to learn"),
    ({'words': {}}, 'config.words has []: to learn words, put'),
    ({'words': {'a': TOY | {'vectors': 1}}}, "has ['init_word', 'num_vectors"),
    ({'words': {'a': {'init_word': 'fox'}}}, 'must have token_string and num_'),
    (
      {'words': {'a': TOY | {'num_vectors_per_token': 76}}},
      'config.words.a.num_vectors_per_token is 76; it must be 1 to 75',
    ),
    ({'words': {'a': TOY | {'token_string': ' <x>'}}}, 'without spaces around'),
    ({'words': {'a': TOY | {'token_string': ''}}}, "token_string is ''; it mu"),
    ({'words': {'a': TOY | {'init_word': ''}}}, "the init_word '' and the wei"),
    ({'words': {'a': TOY | {'weights': 'x'}}}, "init_word 'fox' and the weigh"),
    (
      {'words': {'a': TOY, 'b': TOY | {'token_string': '<TOY>'}}},
      "config.words.a and config.words.b both have the token_string '<TOY>'",
    ),
    (
      {'trained': ('words', 'lora', 'text_encoder')}
      | {'from_scratch': ('text_encoder',)},
      "config.from_scratch has ['text_encoder'], but config.words begin with",
    ),
    ({'data.templates': ('a {}',)}, 'has 2 words, and {} stands for the only'),
    ({'data.templates': (' ',)}, 'config.data.templates has an empty text'),
    (
      {'data.source': 'precomputed'},
      "config.words has ['style', 'toy'], but precomputed text is encoded once",
    ),
    (
      {'trained': ('lora',), 'words': {}, 'preserve_embedding_norm': True},
      'preserve_embedding_norm is True, but config.words is empty',
    ),
  ],
)
def test_refused(changes, message):
  config = word_runs.get_config('base', 'images')
  config.unlock()
  for field, value in changes.items():
    if field == 'words':
      config.words = value
    else:
      config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=re.escape(message)):
    config_validation.check(config)


def test_accepted():
  config = word_runs.get_config('base', 'images')
  config_validation.check(config)
  config.unlock()
  config.words = {'toy': TOY | {'init_word': '', 'weights': 'toy.safetensors'}}
  config.data.templates = ('a photo of {}',)
  config_validation.check(config)
  with pytest.raises(ValueError, match='but precomputed text is encoded once'):
    cache_settings.check_images(config)


def test_without_weights_to_begin_with():
  config = word_runs.get_config('', 'images')
  config.unlock()
  nets = ('unet', 'text_encoder', 'text_encoder_2')
  config.trained = ('words', *nets)
  config.lora = {}
  config_validation.check(config)
  model = from_config.make_model(config)
  with pytest.raises(ValueError, match='init_from is empty, but config.words'):
    run_setup.load_weights(config, model, None)


def test_an_older_run_resumes():
  new = word_runs.get_config('base', 'images', trained=('lora',))
  new.unlock()
  new.words, new.data.templates = {}, ()
  old = new.to_dict()
  for name in ('words', 'preserve_embedding_norm', 'log_with'):
    del old[name]
  del old['log_tracker_name'], old['data']['templates']
  del old['samples']['prompts_file']
  new = new.to_dict()
  new['data']['templates'], new['log_with'] = [], ['tensorboard']  # as in JSON
  assert config_diff.differences(old, new) == {}
  assert config_diff.is_grave('words.toy.init_word', lambda: False)
  assert config_diff.is_grave('preserve_embedding_norm', lambda: False)
  assert not config_diff.is_grave('log_with', lambda: False)


def test_words_that_the_tokenizer_cannot_take():
  known = tokenizer.load()
  word = learned_vectors.Word('toy', 'fox', 2, 'red')
  with pytest.raises(ValueError, match="config.words: the word 'fox' is in th"):
    run_words.add_to_tokenizer(known, [word], (49408, 49408))
  with pytest.raises(ValueError, match='has 49408 tokens, and its text encode'):
    run_words.add_to_tokenizer(known, [word], (49408, 49500))
  word = learned_vectors.Word('toy', '<toy>', 2, 'red')
  refiner = run_words.add_to_tokenizer(known, [word], (None, 49408))
  ids = refiner(['<toy>'])[0]
  assert ids[1, 1:3].tolist() == [49408, 49409] and ids[0].max() == 49407


def test_how_words_begin(tmp_path):
  """With embeddings of a text, over again, or with the vectors of a file."""
  config = word_runs.get_config('base', 'images')
  config.unlock()
  file = learned_words.save(
    tmp_path / 'toy.safetensors',
    {'clip_l': np.ones((1, 8), 'f4'), 'clip_g': np.full((1, 12), 2, 'f4')},
  )
  config.words = {
    'a': TOY | {'init_word': 'red fox', 'num_vectors_per_token': 3},
    'b': dict(token_string='<b>', num_vectors_per_token=1, weights=file),
  }
  model = from_config.make_model(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = {
    net: jax.tree.map(lambda x: rng.normal(size=x.shape), shapes[net])
    for net in learned_vectors.NETS
  }
  mesh = device_mesh.make_mesh(devices=jax.local_devices()[:1])
  known = tokenizer.load()
  tree = word_start.initial(model, params, known, mesh)
  assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, shapes['words'])
  red, fox = known(['red fox'])[0, 0, 1:3]
  for net, value in zip(learned_vectors.NETS, (1, 2)):
    table = params[net]['text_model']['embeddings']['token_embedding']
    expected = np.float32(table['embedding'])[[red, fox, red]]
    np.testing.assert_array_equal(tree[net]['a']['vectors'], expected)
    assert (tree[net]['b']['vectors'] == value).all()
  # More tokens than vectors, and a file of another number.
  config.words.a.num_vectors_per_token = 1
  with pytest.raises(ValueError, match="'red fox', which has 2 tokens, and nu"):
    model = from_config.make_model(config)
    word_start.initial(model, params, known, mesh)
  config.words.a.num_vectors_per_token = 2
  config.words.b.num_vectors_per_token = 2
  with pytest.raises(ValueError, match='num_vectors_per_token is 2 for tex'):
    model = from_config.make_model(config)
    word_start.initial(model, params, known, mesh)
