"""The fields of config.loss: their kinds, and the loss that they describe."""

from typing import Any

from ml_collections import config_dict

from sdxl_jax.diffusion import (
  loss_kinds,
  loss_weights,
  losses,
  timestep_sampling,
  training_noise,
)
from sdxl_jax.training.field_kinds import (
  INF,
  SHARE,
  Choice,
  Flag,
  Items,
  Number,
  Whole,
)

WEIGHT = Number(0, 1e6)  # 0: off
POSITIVE = Number(0, 1e6, excludes=0)

# {field: kind}, for config_fields.
KINDS = {
  'loss_type': Choice(loss_kinds.LOSS_TYPES),
  'huber_schedule': Choice(loss_kinds.HUBER_SCHEDULES),
  'huber_c': POSITIVE,
  'huber_scale': POSITIVE,
  'masked_loss': Flag(),
  'min_snr_gamma': Number(0, INF, excludes=INF),
  'soft_min_snr_gamma': WEIGHT,
  'p2_gamma': WEIGHT,
  'p2_k': POSITIVE,
  'debiased_estimation_loss': Flag(),
  'scale_v_pred_loss_like_noise_pred': Flag(),
  'offset_noise': SHARE,
  'adaptive_noise_scale': Number(-1, 1),
  'multires_noise_iterations': Whole(0, 64),
  'multires_noise_discount': Number(0, 1, excludes=0),
  'ip_noise_gamma': SHARE,
  'timestep_range': Items(Whole(), '(0, 1000)', length=2),
  'timestep_sampling': Choice(timestep_sampling.SAMPLINGS),
  'logit_mean': Number(-10, 10),
  'logit_std': Number(0, 10, excludes=0),
  'sigmoid_scale': Number(0, 10, excludes=0),
  'timestep_weights': Items(WEIGHT, '(1.0, 3.0)'),
  'timestep_bias_strategy': Choice(timestep_sampling.BIASES),
  'timestep_bias_multiplier': POSITIVE,
  'timestep_bias_portion': Number(0, 1, excludes=0),
}
# All fields but the range of timesteps, with their values in a plain loss.
DEFAULTS = {
  'loss_type': 'l2',
  'huber_schedule': 'snr',
  'huber_c': 0.1,
  'huber_scale': 1.0,
  'masked_loss': False,
  'min_snr_gamma': 0.0,
  'soft_min_snr_gamma': 0.0,
  'p2_gamma': 0.0,
  'p2_k': 1.0,
  'debiased_estimation_loss': False,
  'scale_v_pred_loss_like_noise_pred': False,
  'offset_noise': 0.0,
  'adaptive_noise_scale': 0.0,
  'multires_noise_iterations': 0,
  'multires_noise_discount': 0.3,
  'ip_noise_gamma': 0.0,
  'timestep_sampling': 'uniform',
  'logit_mean': 0.0,
  'logit_std': 1.0,
  'sigmoid_scale': 1.0,
  'timestep_weights': (),
  'timestep_bias_strategy': 'none',
  'timestep_bias_multiplier': 1.0,
  'timestep_bias_portion': 0.25,
}


def changed(config: config_dict.ConfigDict) -> dict[str, Any]:
  """Returns {field: value} of those that make another loss than a plain one."""
  values = {name: config.loss[name] for name in DEFAULTS}
  return {n: value for n, value in values.items() if not is_usual(n, value)}


def is_usual(name: str, value: Any) -> bool:
  """Whether a field has its value of a plain loss, as a tuple or a list."""
  usual = DEFAULTS[name]
  return value == usual or (usual == () and not len(value))


def make_settings(config: config_dict.ConfigDict) -> losses.LossSettings:
  """Makes the settings of the loss that a config describes."""
  c = config.loss
  return losses.LossSettings(
    distance=loss_kinds.Distance(
      c.loss_type, c.huber_schedule, c.huber_c, c.huber_scale
    ),
    weighting=make_weighting(config),
    timesteps=timestep_sampling.TimestepSampling(
      timestep_range=tuple(c.timestep_range),
      timestep_sampling=c.timestep_sampling,
      logit_mean=c.logit_mean,
      logit_std=c.logit_std,
      sigmoid_scale=c.sigmoid_scale,
      timestep_weights=tuple(c.timestep_weights),
      timestep_bias_strategy=c.timestep_bias_strategy,
      timestep_bias_multiplier=c.timestep_bias_multiplier,
      timestep_bias_portion=c.timestep_bias_portion,
    ),
    noise=training_noise.Noise(
      offset_noise=c.offset_noise,
      adaptive_noise_scale=c.adaptive_noise_scale,
      multires_noise_iterations=c.multires_noise_iterations,
      multires_noise_discount=c.multires_noise_discount,
      ip_noise_gamma=c.ip_noise_gamma,
    ),
  )


def make_weighting(config: config_dict.ConfigDict) -> loss_weights.Weighting:
  """Makes the weights of timesteps; 0 in the config means off."""
  c = config.loss
  return loss_weights.Weighting(
    min_snr_gamma=c.min_snr_gamma or None,
    soft_min_snr_gamma=c.soft_min_snr_gamma or None,
    p2_gamma=c.p2_gamma or None,
    p2_k=c.p2_k,
    debiased_estimation_loss=c.debiased_estimation_loss,
    scale_v_pred_loss_like_noise_pred=c.scale_v_pred_loss_like_noise_pred,
  )
