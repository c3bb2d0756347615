"""From a config to nets, task and compiled steps; the config stops here."""

import importlib.metadata

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sdxl_jax.conditioning import text_encoder
from sdxl_jax.diffusion import schedule
from sdxl_jax.distributed import mesh as meshes
from sdxl_jax.distributed import sharding
from sdxl_jax.models import clip, discriminator, lora, lpips, unet, vae
from sdxl_jax.training import (
  autoencoder_task,
  diffusion_task,
  limits,
  optimizer,
)

# What `attention = 'auto'` means where.
ATTENTION = {'tpu': 'splash', 'gpu': 'cudnn', 'cpu': 'xla'}
# What compilers are told. Left alone, the TPU's makes of each product with
# parameters that fsdp spread out a loop over their parts, too thin for its
# matrix units: ten blocks at 1024 tokens, forward and backward, then take 34 M
# cycles per picture instead of 19 M (8 pictures per chip of v5p:2x2x2).
OPTIONS = {
  'tpu': {
    'xla_tpu_enable_windowed_einsum_for_all_gather': 'false',
    'xla_tpu_enable_windowed_einsum_for_reduce_scatter': 'false',
  }
}


def make_nets(config, platform=None):
  """The Nets, of diffusion_task or autoencoder_task, that a config describes.

  `platform` ('tpu', 'gpu' or 'cpu') decides what 'auto' stands for; without it
  that of this process.
  """
  fields = with_tuples(config.to_dict())
  for net in ('unet', 'vae', 'text_encoder', 'text_encoder_2'):
    if fields[net] and fields[net].get('attention') == 'auto':
      fields[net]['attention'] = fastest_attention(platform)
  towers = [
    fields[name] and clip.CLIPTextConfig(**fields[name])
    for name in ('text_encoder', 'text_encoder_2')
  ]
  # What is left open is SDXL's; origins.with_latents fills it in.
  autoencoder = {k: v for k, v in fields['vae'].items() if v is not None}
  kinds = {'kl': vae.VAEConfig, 'patch': vae.PatchConfig}
  autoencoder = kinds[autoencoder.pop('kind')](**autoencoder)
  if config.task == 'autoencoder':
    return make_autoencoder_nets(config.autoencoder, autoencoder)
  return diffusion_task.Nets(
    unet=unet.UNetConfig(**fields['unet']),
    vae=autoencoder,
    text=text_encoder.TextEncoder(*towers),
    schedule=schedule.Schedule(**fields['schedule']),
    refiner=config.refiner,
    targets=tuple(lora.Target(name, **t) for name, t in fields['lora'].items()),
  )


def fastest_attention(platform=None):
  """What `attention = 'auto'` stands for on a platform, or here."""
  platform = platform or jax.default_backend()
  if platform == 'gpu' and not meshes.is_ampere(jax.local_devices()[0]):
    return 'xla'
  return ATTENTION[platform]


def make_autoencoder_nets(c, autoencoder):
  return autoencoder_task.Nets(
    vae=autoencoder,
    discriminator=discriminator.DiscriminatorConfig(
      c.adversary_features, c.adversary_layers, autoencoder.dtype
    ),
    lpips=lpips.LPIPSConfig() if c.perceptual_weight else None,
  )


def with_tuples(value):
  """Lists, as JSON has them, become tuples, which hash."""
  if isinstance(value, dict):
    return {k: with_tuples(v) for k, v in value.items()}
  return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def make_learning_rate(config):
  """step -> learning rate."""
  c = config.optimizer
  return optimizer.learning_rate_schedule(
    c.learning_rate, c.warmup_steps, c.cosine and config.total_steps
  )


def make_optimizer(config):
  c = config.optimizer
  average = (
    optimizer.power_ema(*c.ema_widths)
    if c.ema_widths
    else optimizer.ema(c.ema_decay)
  )
  make_chain = lambda: optimizer.make_adamw(
    make_learning_rate(config),
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    weight_decay=c.weight_decay,
    clip_norm=c.clip_norm,
  )
  if config.task == 'diffusion':
    return optax.chain(make_chain(), average)
  return autoencoder_task.make_optimizer(
    make_chain,
    average,
    config.autoencoder.learn_logvar,
    config.autoencoder.decoder_only,
  )


def facts(config, schedule):
  """{name: text} of what all processes of a run must have alike."""
  packages = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    'config': config.to_json(),
    'order of the data': schedule.fingerprint(),
    'set of versions': str(versions),
  }


def check_mesh(config, mesh):
  """Raises ValueError where batch or heads cannot be shared out."""
  batch, devices = config.global_batch_size, meshes.row_devices(mesh)
  parts = parts_of(config)
  if batch % (devices * parts):
    low = batch // (devices * parts) * devices * parts
    raise ValueError(
      f'config.global_batch_size is {batch}; it must be a multiple of '
      f'{devices * parts} = {devices} devices on the mesh axes data and fsdp x '
      f'{parts} parts (accumulation_steps x buckets_per_step): take '
      f'{low or devices * parts} or change the mesh'
    )
  tensor = mesh.shape['tensor']
  for depth, heads in zip(config.unet.transformer_depth, config.unet.num_heads):
    if depth and heads % tensor:
      raise ValueError(
        f'config.mesh.tensor is {tensor}; it must divide the heads of every '
        f'level of the UNet, and one has {heads}'
      )


def parts_of(config):
  """Micro-batches that an optimizer step takes."""
  return config.buckets_per_step * config.accumulation_steps


def make_task(config, nets):
  """The Task that a config describes."""
  if config.task == 'autoencoder':
    return make_autoencoder_task(config, nets)
  zeros = config.uncond == 'zeros'
  return diffusion_task.make_diffusion_task(
    nets,
    make_optimizer(config),
    global_batch_size=config.global_batch_size,
    trained=tuple(config.trained),
    zeros_dropout=config.caption_dropout if zeros else 0.0,
    offset_noise=config.loss.offset_noise,
    min_snr_gamma=config.loss.min_snr_gamma or None,
    timestep_range=tuple(config.loss.timestep_range),
    parts=parts_of(config),
    precomputed=limits.is_precomputed(config) and config.data.precomputed.dtype,
  )


def make_autoencoder_task(config, nets):
  c = config.autoencoder
  rows = config.global_batch_size // parts_of(config)
  return autoencoder_task.make_autoencoder_task(
    nets,
    make_optimizer(config),
    batch_spec=lambda bucket: diffusion_task.image_batch_spec(
      bucket, rows, refiner=False
    ),
    perceptual_weight=c.perceptual_weight,
    kl_weight=c.kl_weight,
    adversary_weight=c.adversary_weight,
    adversary_start=c.adversary_start,
    parts=parts_of(config),
  )


def compile_gradients(task, mesh, params, frozen, bucket, options=None):
  """task.gradients, compiled ahead for one bucket.

  Args:
    task: state.Task.
    mesh: of all devices.
    params, frozen: trees of jax.ShapeDtypeStruct with shardings.
    bucket: (height, width) in px.
    options: {name: value} for the compiler, besides OPTIONS.

  Returns:
    gradients(params, frozen, batch, key, part); any other shape is refused.
  """
  options = OPTIONS.get(meshes.platform(mesh), {}) | (options or {})
  traced = trace_gradients(task, mesh, params, frozen, bucket)
  return traced.lower().compile(options)


def trace_gradients(task, mesh, params, frozen, bucket):
  """As compile_gradients, but only the jax.stages.Traced, with its jaxpr."""
  gradients = jax.jit(
    task.gradients, out_shardings=(places(params), sharding.replicated(mesh))
  )
  batch, key, part = example_batch(task, mesh, bucket)
  keep_rows = sharding.keep_rows(mesh, len(batch['target_size']))
  with jax.set_mesh(mesh), nn.intercept_methods(keep_rows):
    return gradients.trace(params, frozen, batch, key, part)


def example_batch(task, mesh, bucket):
  """Shapes and shardings of (batch, key, part), as gradients takes them."""
  spec = lambda place: (
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  )
  rows = spec(sharding.batch_sharding(mesh))
  key = jax.eval_shape(lambda: jax.random.key(0))
  everywhere = spec(sharding.replicated(mesh))
  part = everywhere(jax.ShapeDtypeStruct((), jnp.int32))
  return jax.tree.map(rows, task.batch_spec(bucket)), everywhere(key), part


def compile_add(params, options=None):
  """(a, b) -> a + b over trees of gradients; a is spent."""
  add = jax.jit(
    lambda a, b: jax.tree.map(jnp.add, a, b),
    out_shardings=places(params),
    donate_argnums=0,
  )
  return add.lower(params, params).compile(options)


def compile_update(task, mesh, state, options=None):
  """task.update, compiled ahead; the state given is spent."""
  update = jax.jit(
    task.update,
    out_shardings=(places(state), sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return update.lower(state, state.params).compile(options)


def places(shapes):
  return jax.tree.map(lambda x: x.sharding, shapes)
