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
NO_WORD = ('', 'none', 'null')  # of programs that have nothing to say
V_TENSOR, ZERO_SNR_TENSOR = 'v_pred', 'ztsnr'
V_SETTING, ZERO_SNR_SETTING = 'ss_v_parameterization', 'ss_zero_terminal_snr'


class Markers(NamedTuple):
  """What a file says of its noise schedule."""

  scheduler: dict[str, Any]  # fields of scheduler_config.json
  notes: tuple[str, ...]  # for the user, where markers disagree


def read(file: safetensors_file.TensorFile, decided: bool = False) -> Markers:
  """Reads the markers of a file.

  The tensors come before modelspec, and modelspec before kohya's settings.

  Args:
    file: whose tensors are not read.
    decided: whether the user says what is predicted, so that no word counts.

  Raises:
    ValueError: for a word of modelspec that is not known.
  """
  said, zero_snr = [], ZERO_SNR_TENSOR in file.tensors
  if V_TENSOR in file.tensors:
    said.append((f'the tensor {V_TENSOR}', 'v_prediction'))
  word = file.metadata.get(SPEC, '').strip()
  if word.lower() not in NO_WORD and not decided:
    location = f'{SPEC} in the metadata of {file.path}'
    name, with_zero_snr = prediction_words.read(word, location)
    said.append((f'{SPEC} = {word}', name))
    zero_snr |= with_zero_snr
  if prediction_words.read_truth(file.metadata.get(V_SETTING)):
    said.append((V_SETTING, 'v_prediction'))
  zero_snr |= prediction_words.read_truth(file.metadata.get(ZERO_SNR_SETTING))
  return decide(said, zero_snr, decided)


def decide(
  said: list[tuple[str, str]], zero_snr: bool, decided: bool
) -> Markers:
  """Returns the Markers of what a file says.

  Args:
    said: (marker, prediction) in the order of their precedence.
    zero_snr: whether zero terminal SNR is marked.
    decided: whether the user says what is predicted.
  """
  fields, notes = {}, []
  if said:
    (marker, name), *rest = said
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
