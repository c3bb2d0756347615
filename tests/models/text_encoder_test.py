"""Context and pooled against the reference's text encoders and pipelines."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from sdxl_jax.models import clip, text_encoder
from sdxl_jax.text import tokenizer
from sdxl_jax.weights.diffusers import tensor_names
from tests.support import folders, text_encoders

LIMIT = 'text_encoders_and_encode_prompt'


def load_text_encoder(golden, name):
  config, params = folders.load_component(golden / 'tiny' / 'base', name)
  net = clip.CLIPText(config)
  return jax.jit(lambda params, ids: net.apply({'params': params}, ids)), params


def final_norm(params, x):
  """The norm after the last block, which CLIPText does not return."""
  norm = params['text_model']['final_layer_norm']
  x = x - x.mean(-1, keepdims=True)
  x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * norm['scale'] + norm['bias']


@pytest.mark.parametrize('name', text_encoders.NAMES)
def test_text_encoders(golden, close, tolerances, name):
  apply, params = load_text_encoder(golden, name)
  arrays = np.load(golden / 'tiny' / 'fixtures' / f'{name}.npz')
  hidden, pooled = apply(params, arrays['input_ids'])
  last = final_norm(params, hidden[-1])
  expected = 'text_embeds' if 'text_embeds' in arrays else 'pooler_output'
  close(pooled, arrays[expected], tolerances[LIMIT], expected)
  close(last, arrays['last_hidden_state'], tolerances[LIMIT], 'last')
  for k, (ours, theirs) in enumerate(zip(hidden, arrays['hidden_states'])):
    close(ours, theirs, tolerances[LIMIT], f'hidden state {k}')
  assert len(hidden) == len(arrays['hidden_states'])


@pytest.mark.parametrize('name', text_encoders.NAMES)
def test_small_inputs_meet_the_right_epsilon(golden, close, tolerances, name):
  apply, params = load_text_encoder(golden, name)
  fixtures = golden / 'tiny' / 'fixtures'
  probe = json.loads((fixtures / 'probes.json').read_text())['probes']
  probe = probe[f'probe_{name}']
  arrays = np.load(fixtures / f'probe_{name}.npz')
  flat = traverse_util.flatten_dict(params)
  slots = tensor_names.locations(flat)
  for scaled in probe['params_scaled']:
    tensor_names.tensor(flat, slots[scaled])[...] *= probe['scale']
  hidden, _ = apply(params, arrays['input_ids'])
  limit = tolerances['eps_probes']
  last = final_norm(params, hidden[-1])
  close(hidden[-2], arrays['penultimate_f64'], limit, 'penultimate')
  close(last, arrays['last_hidden_state_f64'], limit, 'last')


@pytest.mark.parametrize('name', text_encoders.NAMES)
def test_gradients(golden, tolerances, name):
  apply, params = load_text_encoder(golden, name)
  fixtures = golden / 'tiny' / 'fixtures'
  ids = np.load(fixtures / f'{name}.npz')['input_ids']
  stats = json.loads((fixtures / f'{name}_grad_stats.json').read_text())

  def loss(params):
    hidden, pooled = apply(params, ids)
    return jnp.mean(hidden[-2] ** 2) + jnp.mean(pooled**2)

  value, grads = jax.jit(jax.value_and_grad(loss))(params)
  np.testing.assert_allclose(value, stats['loss'], rtol=1e-5)
  flat = traverse_util.flatten_dict(grads)
  slots = tensor_names.locations(flat)
  assert slots.keys() == stats['params'].keys()
  limit = tolerances['unet_grad_stats_l2_rel']
  # Keys' biases have no gradient, since softmax cancels it: float32 noise.
  noise = 1e-7 * max(l2 for l2, _, _ in stats['params'].values())
  for key, (l2, total, largest) in stats['params'].items():
    grad = tensor_names.tensor(flat, slots[key]).astype(np.float64)
    assert abs(np.linalg.norm(grad) - l2) <= limit * l2 + noise, key
    assert abs(np.abs(grad).max() - largest) <= limit * largest + noise, key
    # A sum may cancel: |sum| <= sqrt(n) l2.
    bound = (limit * l2 + noise) * grad.size**0.5
    assert abs(grad.sum() - total) <= bound, key


def prompts_of(kwargs):
  """A pipeline call's arguments as ours: lists, and null left out."""
  lists = {'prompt', 'prompt_2', 'negative_prompt', 'negative_prompt_2'}
  count = 1 if isinstance(kwargs['prompt'], str) else len(kwargs['prompt'])
  ours = {'clip_skip': kwargs.get('clip_skip', 0)}
  for key in lists & kwargs.keys():
    value = kwargs[key]
    value = [value] * count if isinstance(value, str) else value
    ours[key.replace('prompt', 'prompts')] = value
  return ours


@pytest.mark.parametrize('model', text_encoders.MODELS)
def test_encode_prompts(golden, close, tolerances, model):
  folder, fixtures = golden / 'tiny' / model, golden / 'tiny' / 'fixtures'
  encode, _ = text_encoders.load(folder)
  arrays = np.load(fixtures / 'encode_prompt.npz')
  cases = json.loads((fixtures / 'encode_prompt.json').read_text())['cases']
  cases = [case for case in cases if case['pipe'] == model]
  assert cases
  for case in cases:
    kwargs = prompts_of(case['kwargs'])
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', tokenizer.PromptTruncatedWarning)
      cond, uncond = encode(**kwargs)
    # The reference repeats each row for several images of one prompt.
    repeats = case['kwargs'].get('num_images_per_prompt', 1)
    for sign, outputs in (('', cond), ('negative_', uncond)):
      for kind, ours in zip(('prompt', 'pooled_prompt'), outputs):
        key = f'{case["case"]}/{sign}{kind}_embeds'
        expected = arrays[key][::repeats]
        if not expected.any():
          np.testing.assert_array_equal(ours, expected, key)
        else:
          close(ours, expected, tolerances[LIMIT], key)


def test_what_cannot_be_encoded(golden):
  encode, _ = text_encoders.load(golden / 'tiny' / 'base')
  with pytest.raises(ValueError, match='clip_skip 30 is not in 0..'):
    encode(['a'], clip_skip=30)
  with pytest.raises(ValueError, match='the prompts change during sampling'):
    encode(['a'], ['a [b:c:2]'], weighted=True)


def test_init_has_the_shapes_of_the_files(golden):
  encoder, params = text_encoders.load_encoder(golden / 'tiny' / 'base')
  fresh = jax.eval_shape(encoder.init, jax.random.key(0))
  assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)


def test_drop():
  context, pooled = jnp.ones((4000, 3, 2)), jnp.ones((4000, 5))
  key = jax.random.key(0)
  dropped = text_encoder.drop(key, context, pooled, 0.1)
  rows = [np.asarray(x).reshape(4000, -1) for x in dropped]
  kept_rows = [row.all(axis=1) for row in rows]
  for row, keep in zip(rows, kept_rows):
    assert not row[~keep].any()
    assert abs((~keep).mean() - 0.1) < 0.02
  np.testing.assert_array_equal(*kept_rows)
  for rate, share in (0, 1), (1, 0):
    context_, pooled_ = text_encoder.drop(key, context, pooled, rate)
    assert context_.mean() == pooled_.mean() == share
