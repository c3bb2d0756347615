"""Metadata by which other programs recognise LoRA files, in kohya's words."""

import hashlib
import json

import numpy as np

from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.lora import deltas, merge, published_parts

# LyCORIS' names of the kinds that sd-scripts' own module does not have.
ALGOS = {
  'LoHa': 'loha',
  'LoKr': 'lokr',
  'GLoRA': 'glora',
  published_parts.WHOLE: 'full',
  'OFT': 'diag-oft',
  'BOFT': 'boft',
}
LEGACY = 0x100000, 0x10000  # begin and length of what the old hash covers


def describe(key_format: str, lora: merge.Lora) -> dict[str, str]:
  """Returns metadata of the kinds, the ranks and the base model of changes."""
  if not key_format.startswith('kohya'):
    return {'format': 'pt'}
  # Kernels larger than 1 x 1 have settings of their own in sd-scripts.
  linear, large = split(lora)
  dims, scaled = ranks_of(linear or large), scaled_of(linear or large)
  args = network_args(lora)
  if linear and large:
    args['conv_dim'] = one_or_dynamic(ranks_of(large))
    args['conv_alpha'] = one_or_dynamic(scaled_of(large))
  is_plain = set(map(published_parts.kind_of, [*linear, *large])) <= {'LoRA'}
  metadata = {
    'ss_network_module': 'networks.lora' if is_plain else 'lycoris.kohya',
    'ss_network_dim': one_or_dynamic(dims),
    'ss_network_alpha': one_or_dynamic(scaled),
    'ss_base_model_version': 'sdxl_base_v1-0',
    'ss_v2': 'False',
    'modelspec.sai_model_spec': '1.0.0',
    'modelspec.architecture': 'stable-diffusion-xl-v1-base/lora',
    'modelspec.implementation': (
      'https://github.com/Stability-AI/generative-models'
    ),
  }
  return metadata | ({'ss_network_args': json.dumps(args)} if args else {})


def split(lora: merge.Lora) -> tuple[list[deltas.Delta], list[deltas.Delta]]:
  """Returns the changes of weights: of linear layers, of large kernels."""
  linear, large = [], []
  for delta in lora.changes().values():
    parts = published_parts.parts_of(delta)
    is_large = any(
      x.ndim == 4 and x.shape[2:] != (1, 1) for x in parts.values()
    )
    (large if is_large else linear).append(delta)
  return linear, large


def network_args(lora: merge.Lora) -> dict[str, str]:
  """Returns LyCORIS' arguments, of the kind of all changes of weights."""
  kinds = {
    published_parts.kind_of(delta)
    for (_, name), delta in lora.changes().items()
    if name.endswith('.weight')
  }
  bases = {kind.removesuffix(published_parts.DORA) for kind in kinds}
  args = {}
  if len(bases) == 1 and (algo := ALGOS.get(*bases)):
    args['algo'] = algo
  elif bases == {'LoRA'} and kinds != bases:
    args['algo'] = 'lora'
  if kinds and all(kind.endswith(published_parts.DORA) for kind in kinds):
    args['dora_wd'] = 'True'
  return args


def ranks_of(changes: list[deltas.Delta]) -> set[float]:
  """Returns the ranks of changes that have one."""
  return {published_parts.rank_of(delta) for delta in changes} - {None}


def scaled_of(changes: list[deltas.Delta]) -> set[float]:
  """Returns the alphas of changes that have a rank."""
  ranks = [(published_parts.rank_of(delta), delta) for delta in changes]
  return {r * published_parts.scale_of(d) for r, d in ranks if r is not None}


def one_or_dynamic(values: set[float]) -> str:
  """Formats the value of all layers; 'Dynamic' where there is no such."""
  return f'{min(values):g}' if len(values) == 1 else 'Dynamic'


def hashes(
  arrays: dict[str, np.ndarray], metadata: dict[str, str]
) -> dict[str, str]:
  """Returns the hashes of a file, by which A1111 and others know it again.

  sshs_model_hash is the SHA-256 of all behind the header. sshs_legacy_hash is
  that of 64 KiB from 1 MiB on, of a file with metadata of training alone, of
  which 8 digits are kept. modelspec has the first one as a number.

  Args:
    arrays: {name: array} in the order of the file.
    metadata: of the file.
  """
  training = {n: text for n, text in metadata.items() if n.startswith('ss_')}
  tensors = {n: safetensors_file.from_array(x) for n, x in arrays.items()}
  header = safetensors_file.make_header(tensors, metadata=training)
  whole, window = hashlib.sha256(), bytearray(header)
  for array in arrays.values():
    data = np.ascontiguousarray(array).tobytes()
    whole.update(data)
    window += data[: max(0, sum(LEGACY) - len(window))]
  digest, (begin, _) = whole.hexdigest(), LEGACY
  legacy = hashlib.sha256(window[begin : sum(LEGACY)]).hexdigest()
  return {
    'sshs_model_hash': digest,
    'sshs_legacy_hash': legacy[:8],
    'modelspec.hash_sha256': f'0x{digest}',
  }
