"""The words in files for what a UNet predicts, and for zero terminal SNR.

Programs that save checkpoints have written many spellings of the same three
predictions. An unknown word is an error: a model sampled with another
prediction than its own gives noise.
"""

import re
from typing import Any, NamedTuple

# By the name of diffusers, lower-case and with underscores.
WORDS = {
  'epsilon': (
    'epsilon',
    'eps',
    'eps_prediction',
    'epsilon_prediction',
    'eps_pred',
    'noise',
    'noise_prediction',
  ),
  'v_prediction': ('v', 'v_prediction', 'v_pred', 'vpred', 'velocity'),
  'sample': ('sample', 'x0', 'x_0', 'x0_prediction', 'x_start', 'x0_pred'),
}
# Our names of them.
OURS = {
  'epsilon': 'eps',
  'v_prediction': 'v',
  'sample': 'x0',
  'flow_prediction': 'flow',  # in no word of a file, see flow_config
}
NAMES = {word: name for name, words in WORDS.items() for word in words}
# The end of a word that means zero terminal SNR as well, as in 'v-zsnr'.
ZERO_SNR = re.compile(r'_?(ztsnr|zsnr|zero_snr|zero_terminal_snr)$')


class UnknownPrediction(ValueError):
  """Raised for a word that is not known.

  Args:
    problem: where the word is, and which are known; commands without the flag
      that the message has add what to do.
  """

  def __init__(self, problem: str):
    super().__init__(
      f'{problem}: say what the UNet predicts with --prediction=eps, v, x0 or '
      'flow'
    )
    self.problem = problem


class Prediction(NamedTuple):
  """What a word means."""

  name: str  # of diffusers
  zero_snr: bool


def read(word: Any, location: str) -> Prediction:
  """Reads a word in any case, with hyphens, spaces or underscores.

  Args:
    word: of a header or a config.
    location: of the word, for the error.

  Raises:
    UnknownPrediction: for a word that is not known.
  """
  plain = re.sub(r'[\s-]+', '_', str(word).strip().lower())
  stem = ZERO_SNR.sub('', plain)
  if stem not in NAMES:
    known = ', '.join(word for words in WORDS.values() for word in words)
    kind = 'no known prediction'
    if 'flow' in plain:
      kind = 'flow matching, taken from --prediction=flow alone; known are'
    raise UnknownPrediction(
      f'{location} is {str(word)[:50]!r}, which is {kind} ({known}, v-zsnr)'
    )
  return Prediction(NAMES[stem], stem != plain)


def read_truth(word: Any) -> bool:
  """Reads what scripts write for a setting that is on or off."""
  return str(word).strip().lower() in ('true', '1')
