"""Translates the names of tensors in files of any age to today's.

Today's names are those of diffusers 0.42 and transformers 4. Before them came
other names for the autoencoder's attention and for convolutions that change the
size; transformers 5 leaves `text_model.` out; and programs that wrap a module,
to compile it or to run it in several processes, leave the wrapper's name.
"""

import dataclasses
import re
from collections.abc import Iterable

import numpy as np

from sdxl_jax.weights import safetensors_file

Tensor = safetensors_file.LazyTensor
# Modules around others: of torch.compile, DDP, FSDP, checkpointing and PEFT.
WRAPPERS = re.compile(
  r'(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|base_layer'
  r'|_checkpoint_wrapped_module)\.'
)
# Under which training programs keep all parameters.
BOXES = re.compile(r'^(?:state_dict|model_state_dict|params)\.')
VAE_ATTENTION = re.compile(
  r'^((?:encoder|decoder)\.(?:.*\.)?attentions\.\d+)\.'
  r'(query|key|value|q|k|v|proj_attn|proj_out|to_out|norm)\.(?=weight|bias)'
)
VAE_LAYERS = {
  'query': 'to_q',
  'key': 'to_k',
  'value': 'to_v',
  'q': 'to_q',
  'k': 'to_k',
  'v': 'to_v',
  'proj_attn': 'to_out.0',
  'proj_out': 'to_out.0',
  'to_out': 'to_out.0',
  'norm': 'group_norm',
}
# Rules for all nets, in the order in which they are applied.
RULES = (
  (re.compile(r'((?:down|up)samplers\.\d+)\.(?:op|Conv2d_0)\.'), r'\1.conv.'),
  (re.compile(r'(resnets\.\d+)\.nin_shortcut\.'), r'\1.conv_shortcut.'),
  (re.compile(r'(resnets\.\d+)\.temb_proj\.'), r'\1.time_emb_proj.'),
  (re.compile(r'^(encoder|decoder)\.norm_out\.'), r'\1.conv_norm_out.'),
  (re.compile(r'^transformer\.(?!resblocks)'), ''),
  (
    # The tiny autoencoders have an encoder.layers of their own.
    re.compile(
      r'^(?=embeddings\.|final_layer_norm\.'
      r'|encoder\.layers\.\d+\.(?:self_attn|mlp|layer_norm\d)\.)'
    ),
    'text_model.',
  ),
)
# A parameter of its own multiplies from the other side than a linear layer.
BARE_PROJECTION = 'text_projection'


def unwrap(name: str) -> str:
  """Removes the names of modules that only wrap others."""
  return WRAPPERS.sub('', BOXES.sub('', name))


def canonical_name(name: str) -> str:
  """Translates the published name of an older or newer library to today's."""
  name = unwrap(name)
  name = VAE_ATTENTION.sub(lambda m: f'{m[1]}.{VAE_LAYERS[m[2]]}.', name)
  for pattern, today in RULES:
    name = pattern.sub(today, name)
  return f'{name}.weight' if name == BARE_PROJECTION else name


def transpose(tensor: Tensor) -> Tensor:
  """Transposes a matrix when it is read."""
  return dataclasses.replace(
    tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().T
  )


def unify(published: dict[str, Tensor]) -> dict[str, Tensor]:
  """Returns {today's name: tensor} of tensors in any spelling.

  Raises:
    ValueError: if two spellings of one name have different numbers.
  """

  def todays(name, tensor):
    today = canonical_name(name)
    is_bare = today.removesuffix('.weight') == unwrap(name) == BARE_PROJECTION
    return today, transpose(tensor) if is_bare else tensor

  return collect(todays(*item) for item in published.items())


def collect(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
  """Makes a dict of (name, tensor) in which a name may come twice.

  Raises:
    ValueError: if the numbers of two tensors of one name differ.
  """
  found = {}
  for name, tensor in tensors:
    # One of two spellings would hide the other.
    if name in found and not is_same(found[name], tensor):
      first, second = found[name].name or name, tensor.name or name
      raise ValueError(
        f'{second} is stored twice with different numbers: also stored under '
        f'another name, {first}'
      )
    found.setdefault(name, tensor)
  return found


def is_same(one: Tensor, other: Tensor) -> bool:
  """Checks whether two tensors have the same numbers, which reads them."""
  # Programs store a matrix as a convolution of size one, too.
  if np.prod(one.shape) != np.prod(other.shape):
    return False
  return np.array_equal(one.read().ravel(), other.read().ravel())
