"""Configs of the nets that gpu_speed measures, and their random parameters."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from configs import lora, stage3

# Nets with all of SDXL's parts that compile in seconds.
TINY = {
  'unet.block_out_channels': (8, 16),
  'unet.layers_per_block': 1,
  'unet.transformer_depth': (0, 1),
  'unet.mid_transformer_depth': 1,
  'unet.num_heads': (1, 2),
  'unet.context_dim': 32,
  'unet.size_embed_dim': 8,
  'unet.vector_dim': 16 + 6 * 8,
  'unet.norm_num_groups': 4,
  'vae.block_out_channels': (8, 16),
  'vae.layers_per_block': 1,
  'vae.norm_num_groups': 4,
  'text_encoder_2.projection_dim': 16,
}
TINY_TEXT = dict(
  hidden_size=16,
  intermediate_size=32,
  num_hidden_layers=1,
  num_attention_heads=1,
)
# Of the numbers that all parameters are cut from; a prime, so that the rows of
# a kernel do not repeat.
NOISE = 1_048_583


def get_config(kind, setting, **fields):
  """Returns configs/stage3.py or lora.py, tiny if the setting is.

  Args:
    kind: 'stage3' or 'lora'.
    setting: settings.Setting.
    **fields: others to set, 'section.field' with '__' for the dot.
  """
  config = {'stage3': stage3, 'lora': lora}[kind].get_config()
  changes = {name.replace('__', '.'): value for name, value in fields.items()}
  with config.unlocked():
    if setting.tiny:
      changes |= TINY
      for name in ('text_encoder', 'text_encoder_2'):
        config[name].update(TINY_TEXT)
    config.data.buckets = (setting.size,)
    config.samples.size = setting.size
    config.update_from_flattened_dict(changes)
  return config


def draw(shapes):
  """Draws parameters on the device, in one program.

  A few numbers are drawn, and each parameter is cut from them at a place of its
  own: to draw all of them would take longer to compile than to run. Layers keep
  the variance of what they are given.

  Args:
    shapes: tree of jax.ShapeDtypeStruct, with shardings or without.
  """

  def make(key):
    noise = jax.random.normal(key, (NOISE,))
    cut = lambda path, x: cut_from(noise, path, x)  # noqa: E731
    return jax.tree_util.tree_map_with_path(cut, shapes)

  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.jit(make, out_shardings=shardings)(jax.random.key(0))


def cut_from(noise, path, x):
  """Returns one parameter, see `draw`."""
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  first = zlib.crc32(name.encode()) % NOISE
  count = int(np.prod(x.shape))
  values = jnp.resize(noise, first + count)[first:].reshape(x.shape)
  values = values * deviation(name, x.shape)
  return (values + name.endswith('/scale')).astype(x.dtype)


def deviation(name, shape):
  """Returns the standard deviation of a parameter."""
  if not name.endswith(('/kernel', '/a', '/b')):
    return 0.1  # norms, biases, embeddings
  # Kernels that are scanned over have the axis of their stack before them.
  fan_in = np.prod(shape[:-1]) if len(shape) % 2 == 0 else shape[-2]
  return float(fan_in) ** -0.5


def zeros(shapes):
  """Returns zeros in the place of a tree of jax.ShapeDtypeStruct."""

  def make():
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  return jax.jit(make, out_shardings=shardings)()
