"""The tiny text encoders of a set of reference numbers."""

from sdxl_jax.models import text_encoder
from sdxl_jax.sampling import prompt_encoding, prompt_plan, settings
from sdxl_jax.text import tokenizer
from sdxl_jax.weights.diffusers import folder_reader
from tests.support import folders

MODELS = ['base', 'refiner']
NAMES = ['text_encoder', 'text_encoder_2']


def load_encoder(folder):
  components = folder_reader.load_model_index(folder).components
  loaded = {
    n: folders.load_component(folder, n) for n in NAMES if n in components
  }
  configs = {n: config for n, (config, _) in loaded.items()}
  encoder = text_encoder.TextEncoder(
    configs.get('text_encoder'), configs['text_encoder_2']
  )
  return encoder, {n: params for n, (_, params) in loaded.items()}


def load(folder):
  """(encode, encoder) of a folder: prompts > (context, pooled) of branches."""
  encoder, params = load_encoder(folder)
  tokenize = tokenizer.load(folder)
  index = folder_reader.load_model_index(folder)

  def encode(*texts, guided=True, least=1, **options):
    names = prompt_plan.Prompts._fields
    texts = dict(zip(names, texts)) | {
      name: options.pop(name) for name in names if name in options
    }
    for name in ('weighted', 'long'):
      options[f'{name}_prompts'] = options.pop(name, False)
    return encode_branches(
      encoder,
      params,
      tokenize,
      prompt_plan.Prompts(**texts),
      settings.SampleSettings(**options),
      force_zeros=index.force_zeros,
      guided=guided,
      least=least,
    )

  return encode, encoder


def encode_branches(
  encoder, params, tokenize, prompts, chosen, *, guided, **options
):
  """Encodes prompts that do not change, see prompt_encoding.encode_stages.

  Returns one entry for the prompts, or for each part that AND combines, and, if
  guided, one for the unconditional branch.
  """
  plan = prompt_plan.make_plan(prompts, chosen, chosen.steps)
  if len(plan.stages) > 1:
    raise ValueError('the prompts change during sampling')
  ((*positive, uncond),) = prompt_encoding.encode_stages(
    encoder, params, tokenize, plan, chosen, guided=guided, **options
  )
  return [*positive, uncond] if guided else positive
