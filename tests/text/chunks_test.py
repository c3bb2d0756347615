"""Weighted and long prompts as context and pooled, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdxl_jax.models import text_encoder
from sdxl_jax.text import tokenizer
from tests.support import text_encoders

LIMIT = 'text_encoders_and_encode_prompt'


def equal(ours, theirs):
  """Bit for bit, where two zeros are the same."""
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize('model', text_encoders.MODELS)
def test_weight_1_changes_nothing(golden, model):
  encode, _ = text_encoders.load(golden / 'tiny' / model)
  texts = ['a red fox, in (snow)', 'wow!!! 12:30'], ['', 'two words']
  marked = (
    [r'a (red:1) [(fox:1.1)], in \(snow\)', r'((wow!!!:1.0) 12:30:1)'],
    ['', '(two:1) words'],
  )
  plain = encode(*texts, prompts_2=['a', 'b'], clip_skip=1)
  equal(encode(*texts[:1]), encode(*marked[:1], weighted=True))
  equal(encode(*texts, long=True), encode(*marked, weighted=True))
  marks = dict(prompts_2=['(a:1)', 'b'], weighted=True, long=True)
  equal(encode(*marked, **marks, clip_skip=1), plain)


@pytest.mark.parametrize('clip_skip', [0, 1])
@pytest.mark.parametrize('model', text_encoders.MODELS)
def test_weights_draw_from_the_empty_prompt(golden, close, model, clip_skip):
  encode, encoder = text_encoders.load(golden / 'tiny' / model)
  # '!!!' is one token of the first row and three of the second.
  text, marked = 'wow!!! red fox', 'wow(!!!:1.75) [red] (fox:0)'
  spelled = {'text_encoder': [1, 1.75, 1 / 1.1, 0]}
  spelled['text_encoder_2'] = [1, 1.75, 1.75, 1.75, 1 / 1.1, 0]
  columns = [
    np.array([1] + spelled[name] + [1] * (76 - len(spelled[name])))[:, None]
    * np.ones(net.config.hidden_size)
    for name, net in encoder.text_encoders.values()
  ]
  w = np.concatenate(columns, axis=1)
  skip = dict(clip_skip=clip_skip)
  (context, pooled), _ = encode(['a', text], **skip)
  (empty, _), _ = encode([''], **skip)
  (ours, same), _ = encode(['a', marked], weighted=True, **skip)
  equal(same, pooled)
  equal(ours[0], context[0])
  plain, empty = np.float64(context[1]), np.float64(empty[0])
  close(ours[1], empty + w * (plain - empty), 1e-6)
  # Weights 1 and 0 are exact; the others do move the context.
  np.testing.assert_array_equal(ours[1][w == 1], plain[w == 1])
  np.testing.assert_array_equal(ours[1][w == 0], empty[w == 0])
  others = (w != 1) & (w != 0)
  assert (np.abs(ours[1] - plain) > 1e-6)[others].mean() > 0.9
  # Negative prompts alike, without clip_skip.
  _, (ours, same) = encode(['a'], [marked], weighted=True, **skip)
  (plain, pooled), (empty, _) = encode([text], [''])
  close(ours, empty + w * (np.float64(plain) - empty), 1e-6)
  close(same, pooled, 1e-6)


def test_weights_keep_the_type():
  context, empty = jnp.full((2, 3, 4), 3.0, jnp.bfloat16), jnp.ones((1, 3, 4))
  out = text_encoder.apply_prompt_weights(
    context, empty.astype(jnp.bfloat16), np.full((2, 3, 4), 1.5, np.float32)
  )
  assert out.dtype == jnp.bfloat16 and (out == 4).all()


def torch_encode(folder, name, ids):
  """The reference's penultimate state and pooled of rows of 77 ids."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  kind = {
    'text_encoder': 'CLIPTextModel',
    'text_encoder_2': 'CLIPTextModelWithProjection',
  }[name]
  net = getattr(transformers, kind).from_pretrained(folder / name).eval()
  with torch.no_grad():
    out = net(torch.tensor(ids), output_hidden_states=True)
  return out.hidden_states[-2].numpy(), out[0].numpy()


def torch_context(folder, texts, count):
  """Context and pooled of each text, 75 words of one token by 75."""
  contexts, pads = [], {'text_encoder': 49407, 'text_encoder_2': 0}
  rows = tokenizer.load(folder).rows
  for row, (name, pad) in enumerate(pads.items()):
    if not (folder / name).exists():
      continue
    chunks = []
    for text in texts:
      ids = rows[row](text)['input_ids'][1:-1]
      for i in range(count):
        chunk = [49406, *ids[75 * i : 75 * (i + 1)], 49407]
        chunks.append(chunk + [pad] * (77 - len(chunk)))
    states, pooled = torch_encode(folder, name, chunks)
    contexts.append(states.reshape(len(texts), 77 * count, -1))
  return np.concatenate(contexts, -1), pooled[::count]


@pytest.mark.torch
@pytest.mark.parametrize('model', text_encoders.MODELS)
def test_long_prompts(golden, close, tolerances, model):
  encode, _ = text_encoders.load(golden / 'tiny' / model)
  words = ['red', 'fox', 'on', 'white', 'snow'] * 40
  texts = [' '.join(words[:n]) for n in (200, 76, 3)]
  negative = [' '.join(words[::-1][:n]) for n in (0, 151, 200)]
  for positive, opposite in ((texts, negative), (negative, texts)):
    ours = encode(positive, opposite, long=True)
    for (context, pooled), theirs in zip(ours, (positive, opposite)):
      expected = torch_context(golden / 'tiny' / model, theirs, 3)
      assert context.shape[1] == 231
      close(context, expected[0], tolerances[LIMIT], 'context')
      close(pooled, expected[1], tolerances[LIMIT], 'pooled')
  # The longer may be one for bigG.
  for outputs in encode(['a'], prompts_2=texts[:1], long=True):
    assert outputs[0].shape[1] == 231


@pytest.mark.parametrize('model', text_encoders.MODELS)
def test_captions_are_encoded_as_long_prompts(golden, close, model):
  """In training, whose captions all have three chunks."""
  folder = golden / 'tiny' / model
  encode, encoder = text_encoders.load(folder)
  _, params = text_encoders.load_encoder(folder)
  words = ['red', 'fox', 'on', 'white', 'snow'] * 40
  texts = [' '.join(words[:n]) for n in (200, 76, 3, 0)]
  tokens, cut = tokenizer.load(folder).captions(texts, 3)
  assert not any(cut)
  context, pooled = encoder.encode(params, tokens)
  assert context.shape[:2] == (4, 231)
  for i in range(len(texts)):
    # Each chunk alone; pooled is the first one's.
    chunks = [encoder.encode(params, chunk[None]) for chunk in tokens[i]]
    close(context[i], np.concatenate([c for c, _ in chunks], 1)[0], 1e-5)
    close(pooled[i], chunks[0][1][0], 1e-5)
  # A sampler of such a model has as many chunks, whatever the prompts.
  for least, negative in ((3, None), (3, [''] * 4)):
    ours = encode(texts, negative, least=least)
    close(ours[0][0], context, 1e-5)
    close(ours[0][1], pooled, 1e-5)
    assert ours[1][0].shape == context.shape
  with pytest.warns(tokenizer.PromptTruncatedWarning, match='than 227 tokens'):
    (longer, _), *_ = encode(['snow ' * 230], least=3)
  assert longer.shape[1] == 231


def test_gradients_pass_through_all_chunks(golden):
  folder = golden / 'tiny' / 'base'
  _, encoder = text_encoders.load(folder)
  _, params = text_encoders.load_encoder(folder)
  tokenize = tokenizer.load(folder)
  tokens, _ = tokenize.captions(['red ' * 75 + 'fox ' * 75 + 'snow'], 3)
  weights = jax.random.normal(jax.random.key(0), (1, 231, 1))

  @jax.jit
  @jax.grad
  def gradients(params):
    context, pooled = encoder.encode(params, tokens)
    return (weights * context).sum() + pooled.sum()

  found = gradients(params)
  for row, (name, _) in encoder.text_encoders.items():
    embeddings = found[name]['text_model']['embeddings']
    rows = embeddings['token_embedding']['embedding']
    ids = {int(tokens[0, i, row, 1]) for i in range(3)}
    assert len(ids) == 3
    assert all(np.abs(rows[i]).max() > 0 for i in ids)


def test_no_text_depends_on_its_neighbours(golden):
  encode, _ = text_encoders.load(golden / 'tiny' / 'base')
  texts, negative = ['fox ' * 100, 'red'], ['', 'pig ' * 76]
  together = encode(texts, negative, long=True)
  for i in range(2):
    alone = encode(texts[i : i + 1], negative[i : i + 1], long=True)
    for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(together)):
      assert ours[0].shape == theirs[i].shape
      np.testing.assert_allclose(ours[0], theirs[i], atol=1e-5)
  with pytest.raises(ValueError, match='1 and some 2 chunks of up to 75'):
    encode(texts, long=True)


@pytest.mark.parametrize('model', text_encoders.MODELS)
def test_long_prompts_without_negative_ones(golden, close, model):
  encode, _ = text_encoders.load(golden / 'tiny' / model)
  prompts = ['fox ' * 76, 'fox ' * 150]
  (context, _), (uncond, pooled) = encode(prompts, long=True)
  assert uncond.shape == context.shape and uncond.shape[1] == 154
  if model == 'base':
    assert not uncond.any() and not pooled.any()
  else:
    equal((uncond, pooled), encode(prompts, ['', ''], long=True)[1])
    close(uncond[:, :77], uncond[:, 77:], 1e-6)


def test_long_and_weighted(golden, close):
  encode, _ = text_encoders.load(golden / 'tiny' / 'base')
  text, marked = 'fox ' * 100 + 'snow', '(' + 'fox ' * 100 + ':0.5) (snow:2)'
  (plain, pooled), _ = encode([text], long=True)
  (ours, same), _ = encode([marked], long=True, weighted=True)
  (empty, _), _ = encode([''])
  w = np.ones((154, 1))
  w[1:76] = w[78:103] = 0.5
  w[103] = 2
  empty = np.tile(np.float64(empty[0]), (2, 1))
  close(ours[0], empty + w * (plain[0] - empty), 1e-6)
  equal(same, pooled)


def test_compiled_once_per_number_of_chunks(golden):
  encode, _ = text_encoders.load(golden / 'tiny' / 'base')
  encode(['a', 'b', 'c', 'd'])
  compiled = text_encoder.TextEncoder.encode._cache_size()
  encode(['fox ' * 100, 'b ' * 76], long=True)
  encode(['c', 'fox ' * 100], ['d ' * 76, ''], long=True, prompts_2=['x', 'y'])
  encode(['a', 'b', 'c', 'd'], [''] * 4, long=True)
  assert text_encoder.TextEncoder.encode._cache_size() == compiled


def test_cut_unless_long(golden):
  encode, _ = text_encoders.load(golden / 'tiny' / 'base')
  with pytest.warns(tokenizer.PromptTruncatedWarning, match="cut: 'snow'"):
    cut = encode(['fox ' * 75 + '(snow)'], weighted=True)
  equal(cut, encode(['fox ' * 75]))
