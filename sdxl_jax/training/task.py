"""From a config to nets, task and compiled steps; the config stops here."""

import jax

from sdxl_jax.conditioning import text_encoder
from sdxl_jax.diffusion import schedule
from sdxl_jax.distributed import sharding
from sdxl_jax.models import clip, unet, vae
from sdxl_jax.training import diffusion_task, optimizer


def make_nets(config):
  """The diffusion_task.Nets that a config describes."""
  fields = with_tuples(config.to_dict())
  towers = [
    fields[name] and clip.CLIPTextConfig(**fields[name])
    for name in ('text_encoder', 'text_encoder_2')
  ]
  autoencoder = dict(fields['vae'])
  kinds = {'kl': vae.VAEConfig, 'patch': vae.PatchConfig}
  make_vae_config = kinds[autoencoder.pop('kind')]
  return diffusion_task.Nets(
    unet=unet.UNetConfig(**fields['unet']),
    vae=make_vae_config(**autoencoder),
    text=text_encoder.TextEncoder(*towers),
    schedule=schedule.Schedule(**fields['schedule']),
    refiner=config.refiner,
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
  return optimizer.make_optimizer(
    make_learning_rate(config),
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    weight_decay=c.weight_decay,
    clip_norm=c.clip_norm,
    ema_decay=c.ema_decay,
  )


def make_task(config, nets):
  """The Task that a config describes."""
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
    accumulation_steps=config.accumulation_steps,
  )


def compile_gradients(task, mesh, state, frozen, bucket):
  """task.gradients, compiled ahead for one bucket.

  Args:
    task: state.Task.
    mesh: of all devices.
    state, frozen: trees of jax.ShapeDtypeStruct.
    bucket: (height, width) in px.

  Returns:
    gradients(state, frozen, batch, key); any other shape is refused.
  """
  places = sharding.tree_shardings(state, mesh)
  everywhere = sharding.replicated(mesh)
  gradients = jax.jit(
    task.gradients,
    in_shardings=(
      places,
      sharding.tree_shardings(frozen, mesh),
      sharding.batch_sharding(mesh),
      everywhere,
    ),
    out_shardings=(places.params, everywhere),
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  return gradients.lower(state, frozen, task.batch_spec(bucket), key).compile()


def compile_update(task, mesh, state):
  """task.update, compiled ahead; the state given is spent."""
  places = sharding.tree_shardings(state, mesh)
  update = jax.jit(
    task.update,
    in_shardings=(places, places.params),
    out_shardings=(places, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return update.lower(state, state.params).compile()
