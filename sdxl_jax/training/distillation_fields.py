"""The fields of config.distillation: their kinds, and what they require."""

import dataclasses

from ml_collections import config_dict

from sdxl_jax.diffusion import consistency
from sdxl_jax.training import loss_fields
from sdxl_jax.training.field_kinds import COUNT, FACTOR, Choice, Number

METHODS = ('none', 'lcm')
# {field: kind}, for config_fields.
KINDS = {
  'method': Choice(METHODS),
  'num_ddim_timesteps': COUNT,
  'w_min': Number(0, 100),
  'w_max': Number(0, 100),
  'timestep_scaling_factor': FACTOR,
}
DEFAULTS = {'method': 'none'} | dataclasses.asdict(consistency.Settings())
# Fields of config.loss that a distillation has an effect of.
OF_LOSS = ('loss_type', 'huber_schedule', 'huber_c', 'huber_scale')
OF_LOSS += ('masked_loss',)
TIMESTEPS = 1000  # of the noise schedule


def make_settings(config: config_dict.ConfigDict) -> consistency.Settings:
  """Makes the settings of the distillation that a config describes."""
  fields = dataclasses.fields(consistency.Settings)
  return consistency.Settings(
    **{field.name: config.distillation[field.name] for field in fields}
  )


def check(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for a distillation that cannot be."""
  if config.distillation.method == 'none':
    return
  check_nets(config)
  check_text(config)
  check_numbers(config)
  others = [n for n in loss_fields.changed(config) if n not in OF_LOSS]
  if tuple(config.loss.timestep_range) != (0, TIMESTEPS):
    others.append('timestep_range')
  if others:
    raise ValueError(
      f'config.loss.{others[0]} is {config.loss[others[0]]}, but '
      "config.distillation.method 'lcm' draws timesteps and noise by itself, "
      f'all weighed alike: of config.loss it reads {", ".join(OF_LOSS)}; set '
      'the others as configs/default.py does'
    )
  if config.validation.every:
    raise ValueError(
      f'config.validation.every is {config.validation.every}, but '
      "config.distillation.method 'lcm' trains no denoiser, whose loss "
      'validation measures: set it to 0, and look at config.samples'
    )


def check_nets(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for nets that are no teacher, or no student."""
  only_unet = all(g.layers.startswith('unet/') for g in config.lora.values())
  is_lora = tuple(config.trained) == ('lora',) and only_unet
  if config.task != 'diffusion' or not is_lora:
    raise ValueError(
      f'config.task is {config.task!r} and config.trained '
      f"{tuple(config.trained)}, but config.distillation.method 'lcm' trains "
      "('lora',) with patterns of config.lora that begin with unet/, since the "
      'frozen UNet is the teacher: see configs/lcm_lora.py'
    )
  if config.refiner or config.unet.get('guidance_embed_dim'):
    what = 'is a refiner' if config.refiner else 'has a guidance_embed_dim'
    raise ValueError(
      f'the UNet {what}, and cannot be the teacher of '
      "config.distillation.method 'lcm': take a base that samples with guidance"
    )
  if config.schedule.prediction == 'flow':
    raise ValueError(
      "config.schedule.prediction is 'flow', but config.distillation.method "
      "'lcm' needs a teacher that predicts eps, v or x0"
    )


def check_text(config: config_dict.ConfigDict) -> None:
  """Raises ValueError where the text without a prompt is not there."""
  if config.uncond == 'empty' and config.data.source == 'precomputed':
    raise ValueError(
      "config.uncond is 'empty', but of a row of precomputed data the encoded "
      "empty caption is not read, which config.distillation.method 'lcm' leads "
      'away from: read the images, or use a base with uncond zeros'
    )


def check_numbers(config: config_dict.ConfigDict) -> None:
  """Raises ValueError for numbers that do not fit each other."""
  c = config.distillation
  if c.num_ddim_timesteps > TIMESTEPS:
    raise ValueError(
      f'config.distillation.num_ddim_timesteps is {c.num_ddim_timesteps}; it '
      f'must be at most {TIMESTEPS}, and 50 is usual'
    )
  if c.w_min > c.w_max:
    raise ValueError(
      f'config.distillation.w_min is {c.w_min} and w_max {c.w_max}; w is drawn '
      'between them: w_min must be at most w_max'
    )
