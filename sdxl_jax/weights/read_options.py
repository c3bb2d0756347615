"""What a user decides about weights that their files leave open."""

import dataclasses
from typing import Any

from sdxl_jax.weights.diffusers import scheduler_config

# What the noise levels of single files become where zero SNR is marked.
ZERO_SNR = {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}


@dataclasses.dataclass(frozen=True)
class ReadOptions:
  """Options of all readers; each of them is None where the files decide."""

  # Mark in the names of a folder's files: 'fp16', 'bf16', 'non_ema', ...
  variant: str | None = None
  prediction: str | None = None  # one of scheduler_config.PREDICTION_TYPES
  zero_snr: bool | None = None  # whether the schedule ends in pure noise
  # Whether to go on without tensors that would change the image, but cannot be
  # applied.
  skip_unsupported: bool = False

  def __post_init__(self):
    known = scheduler_config.PREDICTION_TYPES
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
    """
    decided = {}
    if self.prediction is not None:
      decided['prediction_type'] = scheduler_config.PREDICTION_TYPES[
        self.prediction
      ]
    if self.zero_snr:
      decided |= ZERO_SNR
    elif self.zero_snr is not None:
      decided['rescale_betas_zero_snr'] = False
    return stored | decided


DEFAULT = ReadOptions()
