"""The parameters of a net: their shapes and dtypes, by its config."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from sdxl_jax.models import clip, controlnet, unet, vae

NetConfig = unet.UNetConfig | vae.AnyConfig | clip.CLIPTextConfig
Tree = dict[str, Any]  # of arrays, or of jax.ShapeDtypeStruct
MARK = 'float16'  # a type that no layer chooses for itself
# Fields on which no shape depends; other attention may need a GPU to be traced.
TRACED = {
  'attention': 'xla',
  'dtype': 'float32',
  'param_dtype': MARK,
  'remat': 'none',
  'scan_unroll': 1,
}


def shapes_of(config: NetConfig, location: str) -> Tree:
  """Returns the shapes of a config's net; `location` names it in errors."""
  try:
    return abstract_params(config)
  except Exception as error:  # a layer's own, of any type
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'{location}: no net can be built from its config ({reason})'
    ) from error


def abstract_params(config: NetConfig) -> Tree:
  """Returns the tree of shapes and dtypes of the net of a config."""
  runtime = {k: v for k, v in TRACED.items() if hasattr(config, k)}
  shapes = trace_params(dataclasses.replace(config, **runtime))

  def typed(x):
    dtype = config.param_dtype if x.dtype == MARK else x.dtype
    return jax.ShapeDtypeStruct(x.shape, dtype)

  return jax.tree.map(typed, shapes)


@functools.cache  # tracing a net takes seconds
def trace_params(config: NetConfig) -> Tree:
  """Returns `abstract_params` of a config with the fields of TRACED."""
  options = {}
  if isinstance(config, controlnet.ControlNetConfig):
    net = controlnet.ControlNet(config)
    inputs = controlnet.init_inputs(config)
    options = {'method': controlnet.apply_to_images}
  elif isinstance(config, unet.UNetConfig):
    net = unet.UNet(config)
    inputs = (
      jnp.zeros((1, 8, 8, config.in_channels)),
      jnp.zeros(1),
      jnp.zeros((1, 77, config.context_dim)),
      jnp.zeros((1, config.vector_dim)),
    )
  elif isinstance(config, clip.CLIPTextConfig):
    net = clip.CLIPText(config)
    inputs = (jnp.zeros((1, config.max_position_embeddings), jnp.int32),)
  else:
    net = vae.make_vae(config)
    inputs = (jnp.zeros((1, 64, 64, config.in_channels)),)
  init = functools.partial(net.init, **options)
  return jax.eval_shape(init, jax.random.key(0), *inputs).get('params', {})
