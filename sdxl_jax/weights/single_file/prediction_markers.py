"""Reads from a single file what its UNet predicts, and zero terminal SNR.

ComfyUI marks them by empty tensors, modelspec by a word in the metadata, and
kohya's scripts by settings of the training in the metadata.
"""

from typing import Any, NamedTuple

from sdxl_jax.weights import prediction_words, safetensors_file

# What the noise levels become where a file marks zero SNR.
ZERO_SNR = {'rescale_betas_zero_snr': True, 'timestep_spacing': 'trailing'}
SPEC = 'modelspec.prediction_type'
# The words of modelspec, by the names of diffusers.
SPEC_WORDS = {'epsilon': 'epsilon', 'v_prediction': 'v'}
NO_WORD = ('', 'none', 'null')  # where a program knows no prediction
V_TENSOR, ZERO_SNR_TENSOR = 'v_pred', 'ztsnr'
V_SETTING, ZERO_SNR_SETTING = 'ss_v_parameterization', 'ss_zero_terminal_snr'


class Markers(NamedTuple):
  """The noise schedule by the markers of a file."""

  scheduler: dict[str, Any]  # fields of scheduler_config.json
  notes: tuple[str, ...]  # for the user, where markers disagree


def read(file: safetensors_file.TensorFile, decided: bool = False) -> Markers:
  """Reads the markers of a file.

  The tensors come before modelspec, and modelspec before kohya's settings.

  Args:
    file: whose tensors are not read.
    decided: whether the user sets what is predicted, so that no word counts.

  Raises:
    ValueError: for a word of modelspec that is not known.
  """
  found, zero_snr = [], ZERO_SNR_TENSOR in file.tensors
  if V_TENSOR in file.tensors:
    found.append((f'the tensor {V_TENSOR}', 'v_prediction'))
  word = file.metadata.get(SPEC, '').strip()
  if word.lower() not in NO_WORD and not decided:
    location = f'{SPEC} in the metadata of {file.path}'
    name, with_zero_snr = prediction_words.read(word, location)
    found.append((f'{SPEC} = {word}', name))
    zero_snr |= with_zero_snr
  if prediction_words.read_truth(file.metadata.get(V_SETTING)):
    found.append((V_SETTING, 'v_prediction'))
  zero_snr |= prediction_words.read_truth(file.metadata.get(ZERO_SNR_SETTING))
  return decide(found, zero_snr, decided)


def decide(
  found: list[tuple[str, str]], zero_snr: bool, decided: bool
) -> Markers:
  """Returns the Markers by what was found in a file.

  Args:
    found: (marker, prediction) in the order of their precedence.
    zero_snr: whether zero terminal SNR is marked.
    decided: whether the user sets what is predicted.
  """
  fields, notes = {}, []
  if found:
    (marker, name), *rest = found
    fields['prediction_type'] = name
    against = [other for other, word in rest if word != name]
    if against and not decided:
      notes.append(
        f'{marker} says that the UNet predicts {name}, against '
        f'{" and ".join(against)}; --prediction decides otherwise'
      )
  # Nothing can be seen in pure noise by its epsilon.
  if zero_snr and fields.get('prediction_type', 'epsilon') != 'epsilon':
    fields |= ZERO_SNR
  elif zero_snr and not decided:
    notes.append(
      'zero terminal SNR is marked and is not applied, because the UNet '
      'predicts epsilon by its markers; if that is wrong, pass '
      '--prediction=v --zero_snr'
    )
  return Markers(fields, tuple(notes))
