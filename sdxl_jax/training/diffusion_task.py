"""Stages 1 to 3, refiner and LoRA: one task, they differ in config only."""

import dataclasses

import jax
import jax.numpy as jnp

from sdxl_jax.conditioning import micro_conditioning, text_encoder
from sdxl_jax.diffusion import loss as losses
from sdxl_jax.diffusion import schedule
from sdxl_jax.models import latents, lora, unet, vae
from sdxl_jax.training import state as states


@dataclasses.dataclass(frozen=True)
class Nets:
  """The nets of one SDXL, base or refiner, without their parameters.

  Parameters are {'unet', 'vae', 'text_encoder', 'text_encoder_2'}, where the
  refiner has no 'text_encoder' and a PatchVAE none at all; with targets there
  are also the low-rank factors of all nets, 'lora'.
  """

  unet: unet.UNetConfig
  vae: vae.VAEConfig | vae.PatchConfig
  text: text_encoder.TextEncoder
  schedule: schedule.Schedule
  refiner: bool = False
  targets: tuple[lora.Target, ...] = ()

  @property
  def configs(self):
    """{net: its config} of the nets that have parameters."""
    configs = {
      'unet': self.unet,
      'vae': self.vae,
      'text_encoder': self.text.text_encoder,
      'text_encoder_2': self.text.text_encoder_2,
    }
    empty = (vae.PatchConfig, type(None))
    return {n: c for n, c in configs.items() if not isinstance(c, empty)}

  def replace(self, **fields):
    """The same nets with fields of all their configs replaced, as dtype."""
    return self.replace_each(lambda name: fields)

  def replace_each(self, fields_of):
    """The same nets with the fields_of(net) replaced in their configs."""
    new = {
      name: dataclasses.replace(config, **fields_of(name))
      for name, config in self.configs.items()
    }
    towers = new.get('text_encoder'), new['text_encoder_2']
    return dataclasses.replace(
      self,
      unet=new['unet'],
      vae=new.get('vae', self.vae),
      text=text_encoder.TextEncoder(*towers),
    )

  def init(self, key):
    """Fresh parameters of every net."""
    side = 2 ** len(self.unet.block_out_channels)
    size = side * self.vae.downscale
    unet_key, vae_key, text_key = jax.random.split(key, 3)
    params = unet.UNet(self.unet).init(
      unet_key,
      jnp.zeros((1, side, side, self.unet.in_channels)),
      jnp.zeros(1),
      jnp.zeros((1, 1, self.unet.context_dim)),
      jnp.zeros((1, self.unet.vector_dim)),
    )
    image = jnp.zeros((1, size, size, self.vae.in_channels))
    autoencoder = vae.make_vae(self.vae).init(vae_key, image)
    params = {
      'unet': params['params'],
      'vae': autoencoder.get('params', {}),
      **self.text.init(text_key),
    }
    if self.targets:
      lora_key = jax.random.fold_in(key, 3)
      params['lora'] = lora.init(lora_key, params, self.targets)
    return params

  def ready(self, params):
    """Parameters as the nets take them: low-rank factors have their scale."""
    if 'lora' not in params:
      return params
    return params | {'lora': lora.scaled(params['lora'], self.targets)}

  def encode(self, params, image):
    """Image [b, h, w, 3] > moments [b, h/8, w/8, 8]."""
    net = vae.make_vae(self.vae)
    return net.apply({'params': params.get('vae', {})}, image, method='encode')

  def decode(self, params, latents):
    """Latents [b, h/8, w/8, 4] > image [b, h, w, 3]."""
    net = vae.make_vae(self.vae)
    return net.apply(
      {'params': params.get('vae', {})}, latents, method='decode'
    )

  def vector(self, pooled, sizes):
    """Pooled text and the batch's sizes > the UNet's second input."""
    width = self.unet.size_embed_dim
    first = sizes['original_size'], sizes['crop_top_left']
    if self.refiner:
      score = sizes['aesthetic_score']
      return micro_conditioning.refiner_vector(pooled, *first, score, width)
    target = sizes['target_size']
    return micro_conditioning.base_vector(pooled, *first, target, width)

  def project(self, params, context):
    """Context [b, n, 2048] > the UNet's keys and values of it.

    They are the same at every step, and so computed once for all of them.
    """
    b, config = len(context), self.unet
    side = 2 ** len(config.block_out_channels)
    inputs = (
      jnp.zeros((b, side, side, config.in_channels)),
      jnp.zeros(b),
      context,
      jnp.zeros((b, config.vector_dim)),
    )
    net = unet.UNet(config)
    _, kept = lora.apply(net, 'unet', params, *inputs, mutable=['context'])
    return kept['context']

  def denoiser(self, params, context, *told):
    """net(x, timestep) -> eps, v or x0, as diffusion/ asks for it.

    Takes context [b, n, 2048], or what `project` makes of it; `told` are vector
    and perhaps guidance_scale, see unet.UNet.
    """
    net, kept = unet.UNet(self.unet), {}
    if isinstance(context, dict):
      kept['context'], context = context, None
    return lambda x, timestep: lora.apply(
      *(net, 'unet', params, x, timestep, context), *told, variables=kept
    )


def make_diffusion_task(
  nets,
  optimizer,
  *,
  global_batch_size,
  trained=('unet',),
  zeros_dropout=0.1,  # share of examples whose text is zeroed
  offset_noise=0.0,  # 0.05 in stage 3
  min_snr_gamma=None,
  timestep_range=None,  # (0, 200) for the refiner
  parts=1,  # micro-batches per optimizer step, see state.Task
  precomputed=None,  # dtype of batches that hold moments and encoded text
):
  """The Task of denoising latents given text and sizes."""
  if global_batch_size % parts:
    raise ValueError(
      f'global_batch_size {global_batch_size} is not a multiple of '
      f'{parts} = accumulation_steps x buckets_per_step; change one of them'
    )

  def init(key, given=None):
    params = nets.init(key) | (given or {})
    params = {name: params[name] for name in trained}
    step = jnp.zeros([], jnp.int32)
    return states.State(step, params, optimizer.init(params))

  loss = make_loss(
    nets, zeros_dropout, offset_noise, min_snr_gamma, timestep_range
  )

  def gradients(params, frozen, batch, key, part):
    key = jax.random.fold_in(key, part)
    return jax.grad(loss, has_aux=True)(params, frozen, batch, key)

  def batch_spec(bucket):
    rows = global_batch_size // parts
    if precomputed:
      return precomputed_batch_spec(bucket, rows, nets, precomputed)
    return image_batch_spec(bucket, rows, nets.refiner)

  update = states.make_update(optimizer, parts)
  return states.Task(init, gradients, update, batch_spec, parts)


def make_loss(nets, zeros_dropout, offset_noise, min_snr_gamma, timestep_range):
  """loss(params, frozen, batch, key) -> (loss, metrics), from one batch."""

  def latents_of(params, batch, key):
    moments = batch.get('moments')
    if moments is None:
      moments = nets.encode(params, batch['image'])
    moments = moments.astype(jnp.float32)
    b, h, w, c = moments.shape
    noise = jax.random.normal(key, (b, h, w, c // 2))
    return latents.sample(nets.vae, moments, noise)

  def loss(params, frozen, batch, key):
    params = nets.ready(frozen | params)
    latents_key, dropout_key, loss_key = jax.random.split(key, 3)
    x = latents_of(params, batch, latents_key)
    if 'context' in batch:
      context, pooled = batch['context'], batch['pooled']
    else:
      context, pooled = nets.text.encode(params, batch['tokens'])
    context, pooled = text_encoder.drop(
      dropout_key, context, pooled, zeros_dropout
    )
    net = nets.denoiser(params, context, nets.vector(pooled, batch))
    return losses.diffusion_loss(
      net,
      x,
      loss_key,
      nets.schedule,
      timestep_range=timestep_range,
      offset_noise=offset_noise,
      min_snr_gamma=min_snr_gamma,
    )

  return loss


def image_batch_spec(bucket, batch_size, refiner):
  """Shapes of a batch of pictures, as data/pipeline.py names them."""
  h, w = bucket
  spec = lambda shape, dtype: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
  batch = {
    'image': spec((h, w, 3), jnp.float32),
    'tokens': spec((2, 77), jnp.int32),
    'original_size': spec((2,), jnp.int32),
    'crop_top_left': spec((2,), jnp.int32),
    'target_size': spec((2,), jnp.int32),
  }
  if refiner:
    batch['aesthetic_score'] = spec((), jnp.float32)
  return batch


def precomputed_batch_spec(bucket, batch_size, nets, dtype):
  """The same with moments and encoded text, computed ahead."""
  batch = image_batch_spec(bucket, batch_size, nets.refiner)
  h, w = (side // nets.vae.downscale for side in bucket)
  tower = nets.text.text_encoder_2
  spec = lambda *shape: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
  del batch['image'], batch['tokens']
  return batch | {
    'moments': spec(h, w, 2 * nets.unet.in_channels),
    'context': spec(tower.max_position_embeddings, nets.unet.context_dim),
    'pooled': spec(tower.projection_dim),
  }
