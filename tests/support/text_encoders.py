"""The tiny text encoders of a set of reference numbers."""

import functools

from sdxl_jax.models import text_encoder
from sdxl_jax.text import tokenizer
from sdxl_jax.weights.diffusers import folder_reader

MODELS = ['base', 'refiner']
NAMES = ['text_encoder', 'text_encoder_2']


def load_encoder(folder):
  components = folder_reader.load_model_index(folder).components
  loaded = {
    n: folder_reader.load_component(folder, n) for n in NAMES if n in components
  }
  configs = {n: config for n, (config, _) in loaded.items()}
  encoder = text_encoder.TextEncoder(
    configs.get('text_encoder'), configs['text_encoder_2']
  )
  return encoder, {n: params for n, (_, params) in loaded.items()}


def load(folder):
  """(encode, encoder) of a folder: encode_prompts with its arguments bound."""
  encoder, params = load_encoder(folder)
  tokenize = tokenizer.load(folder)
  index = folder_reader.load_model_index(folder)
  encode = functools.partial(
    encoder.encode_prompts, params, tokenize, force_zeros=index.force_zeros
  )
  return encode, encoder
