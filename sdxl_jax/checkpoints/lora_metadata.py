"""Metadata of LoRA files of a run, in the words of kohya's sd-scripts.

A1111, ComfyUI and managers of models show them. Only what the config of the run
has is written; what sd-scripts has besides, such as the frequency of tags, is
left out.
"""

import pathlib
from typing import Any

from ml_collections import config_dict

from sdxl_jax.models import sdxl
from sdxl_jax.weights.diffusers import scheduler_config
from sdxl_jax.weights.single_file import prediction_markers

PRECISIONS = {'bfloat16': 'bf16', 'float16': 'fp16', 'float32': 'no'}


def of_run(
  config: config_dict.ConfigDict, nets: sdxl.SDXL, step: int
) -> dict[str, str]:
  """Returns metadata of factors that a run trained.

  Args:
    config: of the run.
    nets: of its model.
    step: of the checkpoint.
  """
  metadata = {n: str(value) for n, value in values_of(config, step).items()}
  height, width = nearest_square(config.data.buckets)
  metadata['modelspec.resolution'] = f'{width}x{height}'
  prediction = scheduler_config.PREDICTION_TYPES[nets.schedule.prediction]
  if word := prediction_markers.SPEC_WORDS.get(prediction):
    metadata[prediction_markers.SPEC] = word
  if nets.refiner:
    metadata['modelspec.architecture'] = 'stable-diffusion-xl-v1-refiner/lora'
  return metadata


def values_of(config: config_dict.ConfigDict, step: int) -> dict[str, Any]:
  """Returns {sd-scripts' name: value}; None where sd-scripts has None."""
  c, o = config, config.optimizer
  height, width = nearest_square(c.data.buckets)
  values = {
    'ss_learning_rate': o.learning_rate,
    'ss_lr_warmup_steps': o.warmup_steps,
    'ss_max_train_steps': c.total_steps,
    'ss_steps': step,
    'ss_seed': c.seed,
    'ss_total_batch_size': c.global_batch_size,
    'ss_gradient_accumulation_steps': c.accumulation_steps,
    'ss_gradient_checkpointing': c.unet.remat != 'none',
    'ss_resolution': (width, height),
    'ss_enable_bucket': len(c.data.buckets) > 1,
    'ss_flip_aug': c.data.flip_probability > 0,
    'ss_noise_offset': c.loss.offset_noise or None,
    'ss_min_snr_gamma': c.loss.min_snr_gamma or None,
    'ss_zero_terminal_snr': c.schedule.zero_terminal_snr,
    'ss_v_parameterization': c.schedule.prediction == 'v',
    'ss_caption_dropout_rate': c.caption_dropout,
    'ss_max_grad_norm': o.clip_norm,
    'ss_max_token_length': more_than_one_chunk(c.max_token_length),
  }
  if c.unet.dtype in PRECISIONS:
    values['ss_mixed_precision'] = PRECISIONS[c.unet.dtype]
  if c.init_from:
    values['ss_sd_model_name'] = pathlib.Path(c.init_from).name
  return values


def nearest_square(buckets: Any) -> tuple[int, int]:
  """Returns (height, width) of the bucket that is nearest to a square."""
  return tuple(min(buckets, key=lambda size: max(size) / min(size)))


def more_than_one_chunk(tokens: int) -> int | None:
  """Returns the tokens of a caption; None, as in sd-scripts, for 75."""
  return None if tokens == 75 else tokens
