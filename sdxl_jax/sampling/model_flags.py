"""Flags of the models that images are sampled from; a PNG holds them too."""

from typing import Any, NamedTuple

from sdxl_jax.checkpoints import run_params
from sdxl_jax.models import compute_dtype, stored_kernels
from sdxl_jax.weights import read_options


class ModelOption(NamedTuple):
  """A flag of the models that images are sampled from."""

  default: Any
  help: str
  kind: type = str  # or bool, or list: a flag that may be repeated


# By the names of the flags.
MODEL_OPTIONS = {
  'weights': ModelOption(
    None,
    'diffusers folder, single file, orbax export or workdir; or owner/name on '
    'the Hugging Face hub',
  ),
  'refiner': ModelOption(None, 'the same for a refiner'),
  'dtype': ModelOption(
    'auto',
    f'compute and storage of UNet and text encoders: '
    f'{", ".join(compute_dtype.CHOICES)}; auto: the fastest of the device',
  ),
  'vae_dtype': ModelOption('auto', 'the same for the autoencoder'),
  'weights_dtype': ModelOption(
    None,
    'storage of the kernels of UNet and text encoders, in 8 bits: '
    f'{", ".join(stored_kernels.LARGEST)}; default: as --dtype',
  ),
  'average': ModelOption('ema', run_params.HELP),
  'variant': ModelOption(
    None, "mark in the names of a folder's files: fp16, bf16, non_ema"
  ),
  'vae': ModelOption(None, 'folder or file of another autoencoder'),
  'prediction': ModelOption(
    None,
    'what the UNet predicts, for weights that do not state it: '
    f'{", ".join(read_options.PREDICTIONS)}',
  ),
  'zero_snr': ModelOption(
    None, 'whether its noise schedule ends in zero SNR', bool
  ),
  'lora': ModelOption(
    (), 'FILE or FILE:WEIGHT, a LoRA for the weights; may be repeated', list
  ),
  'lora_dir': ModelOption(None, 'folder of the LoRAs that prompts name'),
  'controlnet': ModelOption(
    (),
    'PATH or PATH:SCALE or PATH:SCALE:START:END, folder or file of a '
    'ControlNet, the scale of what it adds, and the share of the steps in '
    'which it does; may be repeated',
    list,
  ),
  'embedding': ModelOption(
    (),
    'FILE or NAME=FILE, words of textual inversion; may be repeated',
    list,
  ),
  'skip_unsupported': ModelOption(
    False,
    'go on without tensors that would change the image, but cannot be applied',
    bool,
  ),
}
# Names of options of `pipelines.load` that differ from their flags.
LOAD_OPTIONS = {
  'lora': 'loras',
  'embedding': 'embeddings',
  'controlnet': 'controlnets',
}
# Those that a refiner is loaded with too.
REFINER_OPTIONS = (
  'dtype',
  'vae_dtype',
  'weights_dtype',
  'variant',
  'vae',
  'embedding',
  'skip_unsupported',
)


# Those that older versions had, for a PNG without them.
FORMER_DEFAULTS = {'dtype': 'float32', 'vae_dtype': 'float32'}


def check(models: Any, location: str) -> None:
  """Checks {flag: value} that a PNG holds.

  Args:
    models: JSON value.
    location: of it, for the error.

  Raises:
    ValueError: for another flag or type of value.
  """
  if not isinstance(models, dict):
    raise ValueError(
      f'{location} was changed: its models are no object: pass the file as it '
      'was written'
    )
  for name, value in models.items():
    option = MODEL_OPTIONS.get(name)
    if option is None:
      raise ValueError(
        f'{location} has an option {name!r} of models; there are '
        f'{list(MODEL_OPTIONS)}: sample with the version that wrote it'
      )
    is_list = option.kind is list
    values = value if is_list else [value]
    kind = str if is_list else option.kind
    is_right = isinstance(values, list) and all(
      isinstance(x, kind) for x in values
    )
    if not (is_right or (value is None and option.default is None)):
      raise ValueError(
        f'{location} was changed: {name} of its models is {value!r}: pass the '
        'file as it was written'
      )
