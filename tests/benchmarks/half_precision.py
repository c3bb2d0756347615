"""Measures the error of SDXL's nets in 16 and 8 bits against float32.

  python -m tests.benchmarks.half_precision --nets vae,text_encoder_2,unet

The weights are random: each layer keeps the variance of what it is given, so
that activations are of order one, and grow by what residual blocks add. --gain
multiplies all residual branches, to see how far the range of float16 is. For
each net and type it prints the largest output of any layer, whether all is
finite, the error against float32 (largest, of the largest; and RMS, of the
RMS), and the peak memory of the process so far.
Weights are drawn in float32 and rounded to the type, as loading does; int8 and
float8_e4m3fn are types of kernels, with products in float32.

A UNet takes --steps steps of Euler's method with guidance, of latents of
--size px; the error is that of the latents. One net of one type is in memory
at a time: 12 GB for the UNet in float32, half of it in the others.

A CPU multiplies float16 in float32 and rounds the results. XLA may leave such a
rounding out where two operations follow one another; this is turned off here,
and the first line shows that overflows do appear. --small tries all of it on
nets of a thousandth of the size.
"""

import collections
import dataclasses
import functools
import os
import resource

# Before JAX starts: results are rounded to the type after every operation.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_allow_excess_precision=false'
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import traverse_util

from sdxl_jax.diffusion import (
  denoiser,
  guidance,
  noise_schedule,
  samplers,
  sampling_schedule,
)
from sdxl_jax.models import clip, stored_kernels, unet, vae
from sdxl_jax.weights import net_shapes, quantization

DTYPES = 'float32', 'float16', 'bfloat16'
STORED = tuple(stored_kernels.LARGEST)
FULL = {
  'vae': vae.VAEConfig(),
  'text_encoder': clip.VIT_L,
  'text_encoder_2': clip.VIT_BIGG,
  'unet': unet.BASE,
  'refiner': unet.REFINER,
}
SMALL = {
  'vae': vae.VAEConfig(block_out_channels=(32, 32, 64, 64)),
  'text_encoder': dataclasses.replace(
    clip.VIT_L, hidden_size=96, intermediate_size=384, vocab_size=1000
  ),
  'text_encoder_2': dataclasses.replace(
    clip.VIT_BIGG, hidden_size=80, intermediate_size=320, vocab_size=1000
  ),
  'unet': dataclasses.replace(
    unet.BASE,
    block_out_channels=(32, 64),
    transformer_depth=(0, 2),
    mid_transformer_depth=2,
    num_heads=(1, 2),
    context_dim=64,
  ),
  'refiner': dataclasses.replace(
    unet.REFINER,
    block_out_channels=(32, 64, 64),
    transformer_depth=(0, 2, 0),
    mid_transformer_depth=2,
    num_heads=(1, 2, 2),
    context_dim=64,
  ),
}
# Layers at the end of a residual branch.
BRANCH_ENDS = 'conv2', 'to_out_0', 'net_2', 'proj_out', 'out_proj', 'fc2'
GUIDANCE_SCALE = 5.0


def draw(config, dtype, gain):
  """Draws the parameters of a net, array by array, in a type.

  Args:
    config: of the net.
    dtype: that each array is rounded to.
    gain: of residual branches.
  """
  rng, params = np.random.default_rng(0), {}
  shapes = traverse_util.flatten_dict(net_shapes.abstract_params(config))
  for path, leaf in shapes.items():
    array = rng.standard_normal(leaf.shape, np.float32)
    if path[-1] in ('kernel', 'embedding'):
      # Under nn.scan a kernel [in, out] has the axis of its stack before it.
      inputs = leaf.shape[len(leaf.shape) % 2 : -1]
      if path[-1] == 'kernel':
        array *= np.prod(inputs) ** -0.5
      if path[-2] in BRANCH_ENDS:
        array *= gain
    else:
      array = 0.1 * array + (path[-1] == 'scale')
    params[path] = jnp.asarray(array.astype(jnp.dtype(dtype)))
    del array
  return traverse_util.unflatten_dict(params)


class Outputs:
  """Records the largest output of the layers of each name."""

  def __init__(self):
    self.largest = collections.defaultdict(float)

  def intercept(self, call, args, kwargs, context):
    """Intercepts a layer; works under jit and nn.scan."""
    y = call(*args, **kwargs)
    if context.method_name == '__call__' and isinstance(y, jax.Array):
      name = context.module.name or type(context.module).__name__
      size = jnp.abs(y.astype(jnp.float32)).max()
      jax.debug.callback(functools.partial(self.record, name), size)
    return y

  def record(self, name, size):
    """Keeps the largest; NaN counts as infinity."""
    size = float(size)
    size = np.inf if np.isnan(size) else size
    self.largest[name] = max(self.largest[name], size)

  def top(self):
    """Returns (largest, name of its layers)."""
    return max((size, name) for name, size in self.largest.items())


def make_vae(config, size, steps):
  """Makes (function of params, inputs): latents to an image, and back."""
  net, side = vae.VAE(config), size // config.downscale

  def run(params, z):
    image = net.apply({'params': params}, z, method='decode')
    moments = net.apply({'params': params}, jnp.tanh(image), method='encode')
    return jnp.concatenate([image.reshape(-1), moments.reshape(-1)])

  rng = np.random.default_rng(1)
  return run, (np.float32(rng.normal(size=(1, side, side, 4))),)


def make_text_encoder(config, size, steps):
  """Makes (function of params, inputs): tokens to context and pooled."""
  net = clip.CLIPText(config)

  def run(params, ids):
    states, pooled = net.apply({'params': params}, ids)
    parts = states[-2].reshape(-1), pooled.reshape(-1)
    return jnp.concatenate(parts).astype(jnp.float32)

  ids = np.random.default_rng(1).integers(0, config.vocab_size, (2, 77))
  return run, (np.int32(ids),)


def make_unet(config, size, steps):
  """Makes (function of params, inputs): noise to latents after some steps."""
  net, side = unet.UNet(config), size // 8
  trained = noise_schedule.Schedule()
  schedule = sampling_schedule.make_sampling_schedule(
    trained, sampling_schedule.Spacing(), 'euler', 20
  )

  def run(params, noise, context, vector):
    def predict(x, timestep):
      return net.apply({'params': params}, x, timestep, context, vector)

    guided = guidance.classifier_free_guidance(predict, GUIDANCE_SCALE)
    denoise = denoiser.make_denoiser(guided, schedule)
    state = samplers.init_state(
      samplers.SAMPLERS['euler'], schedule.init_scale * noise
    )
    return samplers.run_steps(
      denoise, state, schedule, samplers.SAMPLERS['euler'], 0, steps
    ).x

  rng = np.random.default_rng(1)
  shapes = (1, side, side, 4), (2, 77, config.context_dim)
  arrays = [rng.normal(size=s) for s in (*shapes, (2, config.vector_dim))]
  return run, tuple(map(np.float32, arrays))


MAKERS = {
  'vae': make_vae,
  'text_encoder': make_text_encoder,
  'text_encoder_2': make_text_encoder,
  'unet': make_unet,
  'refiner': make_unet,
}


def measure(name, config, dtype, args):
  """Runs a net in a type; returns (output, Outputs)."""
  stored = dtype if dtype in STORED else None
  dtype = 'float32' if stored else dtype
  config = dataclasses.replace(config, dtype=dtype, param_dtype=dtype)
  params, outputs = draw(config, dtype, args.gain), Outputs()
  if stored:
    config = dataclasses.replace(config, weights_dtype=stored)
    target = net_shapes.abstract_params(config)
    params = quantization.quantize_tree(params, target)
  run, inputs = MAKERS[name](config, args.size, args.steps)
  with nn.intercept_methods(outputs.intercept):
    found = np.asarray(jax.jit(run)(params, *inputs))
  jax.effects_barrier()
  return found, outputs


def describe(found, expected):
  """Formats the errors of an output."""
  if not np.isfinite(found).all():
    return 'NOT FINITE'
  error = found - expected
  largest = np.abs(error).max() / np.abs(expected).max()
  rms = np.sqrt((error**2).mean() / (expected**2).mean())
  return f'finite, error {largest:.1e} of the largest, {rms:.1e} RMS'


def show_overflow():
  """Prints what becomes of 1e5 in float16 between two operations."""

  @jax.jit
  def there_and_back(x, y):
    return x @ y / 1000, x * y / 1000

  x = jnp.full((8, 8), 100, jnp.float16)
  product, multiple = there_and_back(x, 10 * x)
  print(
    f'float16 beyond 65504: a matmul gives {float(product[0, 0])}, a product '
    f'{float(multiple[0, 0])}'
  )


def main(_):
  args = flags.FLAGS
  print(jax.devices()[0].device_kind)
  show_overflow()
  for name in args.nets:
    config, expected = (SMALL if args.small else FULL)[name], None
    dtypes = dict.fromkeys(['float32', *args.dtypes])  # float32 comes first
    for dtype in dtypes:
      if dtype in STORED and name == 'vae':
        continue
      found, outputs = measure(name, config, dtype, args)
      expected = found if expected is None else expected
      size, layer = outputs.top()
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
      print(
        f'{name} {dtype}: largest output {size:.3g} ({layer}), '
        f'{describe(found, expected)}; peak {peak:.1f} GiB',
        flush=True,
      )
      jax.clear_caches()


if __name__ == '__main__':
  flags.DEFINE_list('nets', list(FULL), 'which of them, in order')
  flags.DEFINE_list('dtypes', [*DTYPES, *STORED], 'compared with float32')
  flags.DEFINE_integer('size', 256, 'px of an image', 64)
  flags.DEFINE_integer('steps', 2, 'of the UNets, of 20', 1)
  flags.DEFINE_float('gain', 1.0, 'of residual branches')
  flags.DEFINE_bool('small', False, 'try it on small nets')
  app.run(main)
