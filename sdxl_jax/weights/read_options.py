"""What a user decides about weights that their files leave open."""

import dataclasses
from typing import Any

from sdxl_jax.weights.diffusers import (
  edm_config,
  flow_config,
  scheduler_config,
  scheduler_defaults,
)
from sdxl_jax.weights.single_file import prediction_markers

# What a UNet may be said to predict; those of continuous noise levels (EDM) are
# sampled as the published models are.
PREDICTIONS = *scheduler_config.PREDICTION_TYPES, *edm_config.PUBLISHED


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """Options of all readers; each of them is None where the files decide."""

  # Mark in the names of a folder's files: 'fp16', 'bf16', 'non_ema', ...
  variant: str | None = None
  prediction: str | None = None  # one of PREDICTIONS
  zero_snr: bool | None = None  # whether the schedule ends in pure noise
  # Whether to go on without tensors that would change the image, but cannot be
  # applied.
  skip_unsupported: bool = False

  def __post_init__(self):
    known = PREDICTIONS
    if self.prediction is not None and self.prediction not in known:
      raise ValueError(
        f'prediction is {self.prediction!r}, which is none of '
        f'{", ".join(known)}: choose one of them, or leave it out'
      )

  def schedule(self, stored: dict[str, Any]) -> dict[str, Any]:
    """Returns a scheduler_config.json with what the user decided about it.

    Args:
      stored: the scheduler_config.json of the weights, or the part of it that
        is known.

    Raises:
      ValueError: if zero SNR is wanted of a UNet that predicts epsilon.
    """
    decided = {}
    if self.prediction in edm_config.PUBLISHED:
      stored = edm_config.PUBLISHED[self.prediction]
    elif self.prediction == 'flow':
      stored = flow_config.decided(stored)
    elif self.prediction is not None:
      # Levels of a flow are of no other prediction.
      if flow_config.is_flow(stored):
        stored = scheduler_defaults.SDXL
      names = scheduler_config.PREDICTION_TYPES
      decided['prediction_type'] = names[self.prediction]
    if self.zero_snr:
      decided |= prediction_markers.ZERO_SNR
    elif self.zero_snr is not None:
      decided['rescale_betas_zero_snr'] = False
    schedule = stored | decided
    if self.zero_snr and edm_config.is_edm(stored):
      raise ValueError(
        '--zero_snr is given, but the UNet takes continuous noise levels '
        '(EDM), which have no last one: leave it out'
      )
    if self.zero_snr and flow_config.is_flow(stored):
      raise ValueError(
        '--zero_snr is given, but the UNet predicts the flow, which ends in '
        'pure noise anyway: leave it out'
      )
    if self.zero_snr and schedule.get('prediction_type') == 'epsilon':
      raise ValueError(
        '--zero_snr is given, but the UNet predicts eps, which shows nothing '
        'of the image where there is only noise: pass --prediction=v too, or '
        'leave it out'
      )
    return schedule


DEFAULT = ReadOptions()
