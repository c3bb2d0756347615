"""Translates the names of single files of any age to the original ones.

diffusers' conversion scripts left some of its own names: of the autoencoder's
attention, whose weights they wrote as matrices or as convolutions of size one,
and of the projection of the second text encoder.
"""

import re

from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.diffusers import spellings

Tensor = safetensors_file.LazyTensor
ATTENTION = re.compile(
  r'^((?:encoder|decoder)\.mid\.attn_1)\.'
  r'(to_q|to_k|to_v|query|key|value|to_out\.0|to_out|proj_attn|group_norm)'
  r'\.(?=weight|bias)'
)
LAYERS = {
  'to_q': 'q',
  'query': 'q',
  'to_k': 'k',
  'key': 'k',
  'to_v': 'v',
  'value': 'v',
  'to_out.0': 'proj_out',
  'to_out': 'proj_out',
  'proj_attn': 'proj_out',
  'group_norm': 'norm',
}
RULES = (
  (
    re.compile(r'^((?:en|de)coder\..*block(?:\.|_)\d+)\.conv_shortcut\.'),
    r'\1.nin_shortcut.',
  ),
  (re.compile(r'^(encoder|decoder)\.conv_norm_out\.'), r'\1.norm_out.'),
  (re.compile(r'\.attn\.in_proj\.(weight|bias)$'), r'.attn.in_proj_\1'),
  (re.compile(r'^positional_embedding\.weight$'), 'positional_embedding'),
)
# As a linear layer it multiplies from the other side.
LINEAR_PROJECTION = f'{spellings.BARE_PROJECTION}.weight'


def canonical_name(name: str) -> str:
  """Translates a name without prefix in any spelling to the original one."""
  name = ATTENTION.sub(lambda m: f'{m[1]}.{LAYERS[m[2]]}.', name)
  for pattern, original in RULES:
    name = pattern.sub(original, name)
  return spellings.BARE_PROJECTION if name == LINEAR_PROJECTION else name


def unify(part: dict[str, Tensor]) -> dict[str, Tensor]:
  """Returns {original name: tensor} of a net's tensors in any spelling.

  Raises:
    ValueError: if two spellings of one name have different numbers.
  """

  def original(name, tensor):
    is_linear = name == LINEAR_PROJECTION
    tensor = spellings.transpose(tensor) if is_linear else tensor
    return canonical_name(name), tensor

  return spellings.collect(original(*item) for item in part.items())
