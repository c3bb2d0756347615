"""Low-rank factors in files, in the dialects of `lora_names`."""

import collections
import json
import pathlib

import jax.numpy as jnp
import numpy as np

from sdxl_jax import atomic_write
from sdxl_jax.weights import safetensors_file
from sdxl_jax.weights.diffusers import tensor_names
from sdxl_jax.weights.lora import lora_names, merge

FILES = ('pytorch_lora_weights.safetensors', 'adapter_model.safetensors')
ADAPTER = 'adapter_config.json'  # PEFT's, beside its file
# Of other methods, by what their tensors are called.
OTHERS = {
  'dora_scale': 'DoRA',
  'lora_magnitude_vector': 'DoRA',
  'lora_mid': 'LoCon with a core between its factors',
  'hada_w1_a': 'LoHa',
  'lokr_w1': 'LoKr',
  'oft_blocks': 'OFT',
  'diff': 'a difference of whole weights',
  'diff_b': 'a difference of whole biases',
  'lora_B.bias': 'LoRA with biases',
}


def load(path, params):
  """The Lora of a file.

  Args:
    path: of a safetensors file, or of a folder that diffusers or PEFT wrote.
    params: {net: parameters, or their shapes} of the base model it is for.

  Raises:
    FileNotFoundError: for no such file.
    ValueError: for a file of another method or another base model.
  """
  path = find(path)
  file = safetensors_file.load(path)
  found, metadata = list(file.tensors), file.metadata
  check_method(path, found)
  layers = merge.layers_of(params)
  known = lora_names.key_prefixes(by_net(layers))
  parts, leftover = collections.defaultdict(dict), []
  for name, tensor in file.tensors.items():
    stem, part = lora_names.split(name) or (None, None)
    if stem in known:
      parts[stem][part] = tensor.read()
    else:
      leftover.append(name)
  if leftover or not found:
    raise ValueError(
      f'{path}: {len(leftover)} of {len(found)} tensors belong to no layer of '
      f'the base model: {tensor_names.format_list(sorted(leftover))}. It is '
      f'made for another one{base_of(metadata)}'
    )
  dialect = lora_names.key_format_of(found)
  alphas = read_alphas(path, dialect, metadata)
  factors = {}
  for stem, given in parts.items():
    layer, made = fit(path, stem, given, known[stem], layers)
    if made.alpha is None and alphas:
      made = made._replace(alpha=alphas(*layer, len(made.down)))
    if layer in factors:
      raise ValueError(
        f'{path} has the layer {".".join(layer)} twice, by two names; one of '
        f'them is {stem}: write it again with the tool it is from'
      )
    factors[layer] = made
  return merge.Lora(factors, dialect, metadata)


def find(path):
  """The file, also where its folder is given."""
  path = pathlib.Path(path)
  for file in (path, *(path / name for name in FILES)):
    if file.is_file():
      return file
  raise FileNotFoundError(
    f'LoRA {path}: no such file, nor a folder with one of {", ".join(FILES)}'
  )


def check_method(path, found):
  for name in found:
    for end, method in OTHERS.items():
      if f'{name}.'.endswith((f'.{end}.', f'.{end}.weight.')):
        raise ValueError(
          f'{path} is not plain LoRA but {method}: it has {name}. Merge it '
          'into its base model with the tool it is from, and load the result'
        )


def base_of(metadata):
  base = metadata.get('ss_base_model_version')
  return f': {base}' if base else ''


def by_net(layers):
  found = collections.defaultdict(list)
  for net, name in layers:
    found[net].append(name)
  return found


def fit(path, stem, parts, candidates, layers):
  """((net, layer), Factors) of a stem, by the shapes where two towers fit."""
  if not {'down', 'up'} <= set(parts):
    raise ValueError(
      f'{path}: {stem} has no {"up" if "down" in parts else "down"}: the file '
      'is not whole'
    )
  made = merge.Factors(parts['down'], parts['up'], parts.get('alpha'))
  fitting = [c for c in candidates if fits(made, layers[c].shape)]
  if len(fitting) > 1:
    nets = ' and '.join(sorted(net for net, _ in fitting))
    raise ValueError(
      f'{path}: {stem} may be of {nets}: put one of these before its names, as '
      'in text_encoder.base_model.model'
    )
  if not fitting:
    shapes = ' or '.join(str(layers[c].shape) for c in sorted(candidates))
    raise ValueError(
      f'{path}: {stem} has the factors {made.down.shape} and {made.up.shape}, '
      f'and the layer is {shapes}: it is made for another base model'
    )
  return fitting[0], made


def fits(factors, shape):
  """Whether they are those of a weight [out, in] or [out, in, kh, kw]."""
  rank, *inputs = factors.down.shape
  outputs, *rest = factors.up.shape
  # A linear layer may have been stored as a convolution of size one.
  plain = [*shape[1:], *[1] * (len(inputs) - len(shape) + 1)]
  ones = [1] * (len(rest) - 1)
  return outputs == shape[0] and inputs == plain and rest == [rank, *ones]


def read_alphas(path, dialect, metadata):
  """alpha(net, layer, rank) of what stands beside the tensors, or None."""
  config = path.parent / ADAPTER
  if dialect == 'peft' and config.is_file():
    told = json.loads(config.read_text())
    settings = lambda net: told
  elif 'lora_adapter_metadata' in metadata:
    told = json.loads(metadata['lora_adapter_metadata'])
    settings = lambda net: {
      name.removeprefix(f'{net}.'): value
      for name, value in told.items()
      if name.startswith(f'{net}.')
    }
  else:
    return None

  def alpha(net, layer, rank):
    found = settings(net)
    if 'lora_alpha' not in found:
      return None
    patterns = found.get('alpha_pattern') or {}
    value = next(
      (v for k, v in patterns.items() if f'.{layer}'.endswith(f'.{k}')),
      found['lora_alpha'],
    )
    if found.get('use_rslora'):  # which divides by the root of the rank
      value = value * rank**0.5
    return np.float32(value)

  return alpha


def save(
  path,
  made,
  params,
  dialect=None,
  dtype=None,
  metadata=None,
  overwrite=False,
):
  """Writes a Lora; the file appears whole or not at all.

  Args:
    path: to write; 'peft' also writes adapter_config.json beside it.
    made: Lora.
    params: {net: parameters, or their shapes} of its base model.
    dialect: see lora_names; the Lora's own by default. Those of diffusers have
      no alpha: `up` has the scale in it.
    dtype: 'float32', 'float16' or 'bfloat16'; as it is by default.
    metadata: {name: text} besides that of the dialect.
    overwrite: whether a file may be there already.
  """
  path, dialect = pathlib.Path(path), dialect or made.dialect
  check_dialect(dialect, made)
  layout = lora_names.unet_block_layout(by_net(merge.layers_of(params))['unet'])
  tensors = {}
  for (net, layer), factors in made.factors.items():
    stem = lora_names.key_prefix(dialect, net, layer, layout)
    if dialect.startswith('diffusers'):
      factors = fold(factors)
    for part in ('down', 'up'):
      end = lora_names.key_suffix(dialect, net, part)
      tensors[stem + end] = as_dtype(getattr(factors, part), dtype)
    if dialect.startswith('kohya') and factors.alpha is not None:
      tensors[f'{stem}.alpha'] = as_dtype(factors.alpha, dtype)
  if dialect == 'peft':
    config = json.dumps(adapter_config(made), indent=2)
    (path.parent / ADAPTER).write_text(config + '\n')
  kept = made.metadata if dialect == made.dialect else {}
  about = describe(dialect, made) | kept | (metadata or {})
  about.pop('lora_adapter_metadata', None)  # its alpha is in the tensors now
  tensors = {
    name: safetensors_file.from_array(array) for name, array in tensors.items()
  }
  with atomic_write.atomic_path(path, overwrite) as partial:
    safetensors_file.write(partial, tensors, metadata=about)


def check_dialect(dialect, made):
  if dialect not in lora_names.KEY_FORMATS:
    raise ValueError(
      f'dialect is {dialect!r}; choose one of {lora_names.KEY_FORMATS}'
    )
  nets = sorted({net for net, _ in made.factors})
  if dialect == 'peft' and len(nets) > 1:
    raise ValueError(
      f'PEFT keeps one net in a file, and these factors are of {nets}: choose '
      "the dialect 'diffusers', which has the same names for several"
    )


def as_dtype(array, dtype):
  array = np.asarray(array)
  return array if dtype is None else array.astype(jnp.dtype(dtype))


def fold(factors):
  """The same with alpha = r, its scale in `up`."""
  if factors.scale == 1:
    return factors._replace(alpha=None)
  up = (np.float32(factors.up) * factors.scale).astype(factors.up.dtype)
  return merge.Factors(factors.down, up)


def describe(dialect, made):
  """Metadata by which other programs know what a file is."""
  if not dialect.startswith('kohya'):
    return {'format': 'pt'}
  ranks = {len(f.down) for f in made.factors.values()}
  alphas = {f.scale * len(f.down) for f in made.factors.values()}
  one = lambda values: f'{values.pop():g}' if len(values) == 1 else 'Dynamic'
  return {
    'ss_network_module': 'networks.lora',
    'ss_network_dim': one(ranks),
    'ss_network_alpha': one(alphas),
    'ss_base_model_version': 'sdxl_base_v1-0',
    'ss_v2': 'False',
    'modelspec.sai_model_spec': '1.0.0',
    'modelspec.architecture': 'stable-diffusion-xl-v1-base/lora',
    'modelspec.implementation': (
      'https://github.com/Stability-AI/generative-models'
    ),
  }


def adapter_config(made):
  """PEFT's, of one net."""
  ranks = {name: len(f.down) for (_, name), f in made.factors.items()}
  alphas = {n: f.scale * len(f.down) for (_, n), f in made.factors.items()}
  most = lambda of: collections.Counter(of.values()).most_common(1)[0][0]
  other = lambda of: {n: x for n, x in of.items() if x != most(of)}
  return {
    'peft_type': 'LORA',
    'r': most(ranks),
    'lora_alpha': most(alphas),
    'rank_pattern': other(ranks),
    'alpha_pattern': other(alphas),
    'target_modules': list(ranks),
    'lora_dropout': 0.0,
    'bias': 'none',
  }


def parse(spec):
  """'FILE' or 'FILE:WEIGHT' > (file, weight)."""
  file, colon, weight = spec.rpartition(':')
  try:
    return (file, float(weight)) if colon else (spec, 1.0)
  except ValueError:
    return spec, 1.0


def add(params, specs):
  """Parameters with LoRA files merged in, as 'FILE' or 'FILE:WEIGHT'."""
  pairs = [parse(spec) for spec in specs]
  return merge.merge(params, [(load(file, params), w) for file, w in pairs])
