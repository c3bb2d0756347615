"""Low-rank factors beside the kernels of a net (Hu et al. 2021, LoRA).

W becomes W + alpha / r * a b, with a [in, r] and b [r, out] in place of a whole
[in, out] to learn. The nets know nothing of it: under `apply` each layer that
has factors in the collection 'lora' adds its product to what it gives.
"""

import dataclasses
import difflib
import re
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

NETS = ('unet', 'text_encoder', 'text_encoder_2')


@dataclasses.dataclass(frozen=True)
class Target:
  """Layers that have factors, and what these are like."""

  name: str  # in the config
  layers: str  # pattern of whole paths, as unet/.*/attn[12]/to_[qkv]
  rank: int
  alpha: float  # what they add is scaled by alpha / rank


def init(key, params, targets):
  """Fresh factors, which change nothing yet: {net: {..., 'a', 'b'}}, float32.

  Args:
    key: jax key.
    params: {net: parameters, or their shapes}.
    targets: Targets.

  Raises:
    ValueError: for a pattern that no layer matches, or two that one matches.
  """
  flat = traverse_util.flatten_dict({n: params[n] for n in NETS if n in params})
  kernels = {path[:-1]: x for path, x in flat.items() if path[-1] == 'kernel'}
  factors = {}
  for path, target in assign(kernels, targets).items():
    *inputs, outputs = kernels[path].shape
    # Under nn.scan a kernel [in, out] has the axis of its stack before it.
    stack = inputs[: len(inputs) % 2 == 0]
    # Uniform in +-1/sqrt(fan_in), as PEFT draws it.
    draw = nn.initializers.variance_scaling(
      *(1 / 3, 'fan_in', 'uniform'), batch_axis=range(len(stack))
    )
    one = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    factors[*path, 'a'] = draw(one, (*inputs, target.rank), jnp.float32)
    factors[*path, 'b'] = jnp.zeros((*stack, target.rank, outputs))
  return traverse_util.unflatten_dict(factors)


def assign(paths, targets):
  """{path of a layer: its Target}."""
  found = {}
  for target in targets:
    hits = [path for path in paths if matches(target, path)]
    if not hits:
      raise ValueError(no_layer(target, ['/'.join(path) for path in paths]))
    for path in hits:
      if path in found:
        raise ValueError(
          f'config.lora.{found[path].name} and config.lora.{target.name} both '
          f'name the layer {"/".join(path)}: make one of their patterns '
          'narrower'
        )
      found[path] = target
  return found


def matches(target, path):
  return re.fullmatch(target.layers, '/'.join(path))


def no_layer(target, paths):
  ends = {path.rpartition('/')[2]: path for path in paths}
  end = target.layers.rpartition('/')[2]
  near = [ends[e] for e in difflib.get_close_matches(end, ends, 4, 0.0)]
  return (
    f'config.lora.{target.name}.layers is {target.layers!r}, which no layer '
    f'matches as a whole. Near ones are {", ".join(near)}'
  )


def scaled(factors, targets):
  """Factors as `apply` takes them: b has the scale alpha / rank in it."""

  def scale(path, x):
    (target,) = (t for t in targets if matches(t, path[:-1]))
    return x * (target.alpha / target.rank) if path[-1] == 'b' else x

  flat = traverse_util.flatten_dict(factors)
  return traverse_util.unflatten_dict({p: scale(p, x) for p, x in flat.items()})


def apply(net, name, params, *args, variables=None, **kwargs):
  """net.apply with params[name] and, where there are, params['lora'][name].

  `variables` are further collections; the rest is as net.apply takes it.
  """
  variables = {'params': params[name]} | (variables or {})
  factors = params.get('lora', {}).get(name)
  if not factors:
    return net.apply(variables, *args, **kwargs)
  with nn.intercept_methods(add_product):
    return net.apply(variables | {'lora': factors}, *args, **kwargs)


def add_product(method, args, kwargs, context):
  """An interceptor: x W of a layer with factors becomes x W + (x a) b."""
  layer, y = context.module, method(*args, **kwargs)
  if not isinstance(layer, nn.Dense | nn.Conv):
    return y
  if not layer.has_variable('lora', 'a'):
    return y
  a, b = (layer.get_variable('lora', name) for name in 'ab')
  # A convolution has a's rows where it has its kernel's, and b at each pixel.
  down = layer.clone(
    features=a.shape[-1], use_bias=False, parent=None, name=None
  )
  h = down.apply({'params': {'kernel': a}}, *args)
  return y + h @ b.astype(h.dtype)
