"""Describes the tensors of a LoRA file that are not applied."""

from sdxl_jax.weights import companions
from sdxl_jax.weights.lora import deltas, lora_tensors


def check_unsupported(
  contents: lora_tensors.Contents, total: int, skip_unsupported: bool
) -> None:
  """Raises ValueError for tensors that would be left out unasked."""
  if contents.unsupported and not skip_unsupported:
    raise ValueError(
      f'{len(contents.unsupported)} of {total} tensors would change the image, '
      f'and cannot be applied: {companions.describe(contents.unsupported)}. Go '
      'on without them by --skip_unsupported, or merge the file into its base '
      'model with the tool it is from and load the result'
    )


def describe(
  contents: lora_tensors.Contents,
  factors: dict[tuple[str, str], deltas.Factors],
) -> tuple[str, ...]:
  """Returns lines on the tensors that were not read, for the user."""
  notes = []
  if contents.harmless:
    names = companions.format_list(contents.harmless, 3)
    notes.append(
      f'passed over {companions.count(contents.harmless)} that change nothing: '
      f'{names}'
    )
  if contents.words:
    notes.append(
      f'passed over {companions.count(contents.words)} of learned words '
      f'({companions.format_list(contents.words, 1)}): pass this file as '
      '--embedding, too'
    )
  left_out = contents.unsupported | {
    name: 'unknown names' for name in contents.unknown
  }
  if left_out:
    notes.append(
      f'left out {companions.count(left_out)} that would change the image: '
      f'{companions.describe(left_out)}'
    )
  zeros = [key for key, f in factors.items() if f.scale == 0]
  if zeros:
    notes.append(
      f'{len(zeros)} of {len(factors)} layers have alpha 0 and change nothing, '
      f'the first is {".".join(zeros[0])}'
    )
  return tuple(notes)


def describe_scale(
  metadata: dict[str, str],
  factors: dict[tuple[str, str], deltas.Factors],
) -> tuple[str, ...]:
  """Returns a line if metadata has another scale than that which is taken."""
  bare = [f for f in factors.values() if f.alpha is None]
  try:
    alpha = float(metadata.get('ss_network_alpha', ''))
  except ValueError:
    return ()
  if not any(len(f.down) != alpha for f in bare):
    return ()
  return (
    f'{len(bare)} of {len(factors)} layers have no alpha, and are applied with '
    'the scale 1, as other programs do; the metadata has ss_network_alpha '
    f'{alpha:g}, which would make it {alpha / len(bare[0].down):.3g}: give '
    'that as the weight of the file if it looks too strong',
  )
