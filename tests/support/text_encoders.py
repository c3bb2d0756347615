"""The tiny text encoders of a set of reference numbers."""

import functools

from sdxl_jax.models import text_encoder
from sdxl_jax.text import tokenizer
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import folders

MODELS = ['base', 'refiner']
NAMES = ['text_encoder', 'text_encoder_2']


def load_encoder(folder):
  found = folder_reader.load_model_index(folder).components
  towers = {n: folders.load_component(folder, n) for n in NAMES if n in found}
  configs = {n: config for n, (config, _) in towers.items()}
  encoder = text_encoder.TextEncoder(
    configs.get('text_encoder'), configs['text_encoder_2']
  )
  return encoder, {n: params for n, (_, params) in towers.items()}


def load(folder):
  """(encode, encoder) of a folder: encode_prompts with all that it needs."""
  encoder, params = load_encoder(folder)
  tokenize = tokenizer.load(folder)
  index = folder_reader.load_model_index(folder)
  encode = functools.partial(
    encoder.encode_prompts, params, tokenize, force_zeros=index.force_zeros
  )
  return encode, encoder
