"""Sorts the tensors of a LoRA file by what they are, from their names."""

import collections
import dataclasses
import re
from collections.abc import Collection

from sdxl_jax.weights import companions, textual_inversion
from sdxl_jax.weights.lora import lora_names

# Tensors that change nothing, beside those of whole models.
HARMLESS = re.compile(
  r'(.*[._])?(position_ids|scale_records?)|__step__|loss|train_loss'
  r'|v_pred|ztsnr'  # of the model that it was trained on
)
# What would change the image, and is not applied: methods by the names of
# their tensors.
UNSUPPORTED = {
  r'.*\.bias_(indices|values|size)': 'sparse differences of biases',
  r'.*\.oft_diag': 'OFT in the old form of LyCORIS',
  r'.*\.oft_[rR](\..*)?': 'OFT in the form of PEFT',
  r'.*\.boft_[Rs](\..*)?': 'BOFT in the form of PEFT',
  r'.*\.bm\.weight': 'GLoRA with a core',
  r'.*\.(on_input|ia3_l)(\..*)?': 'IA3',
  r'.*\.lora_embedding_[AB](\..*)?': 'LoRA of an embedding',
  r'.*\.lora_[AB]_list(\..*)?': 'DyLoRA',
  r'.*\.(vera_lambda_[bd]|vblora_\w+|hra_u)(\..*)?': 'VeRA, VB-LoRA or HRA',
  r'.*\.(fourierft_spectrum|randlora_\w+|bone_\w+)(\..*)?': 'another PEFT',
  r'.*\.modules_to_save\..*': 'whole weights that PEFT trained',
  r'.*\.(set_weight|reshape_weight)': 'weights that replace a layer',
}
UNSUPPORTED = {re.compile(p): method for p, method in UNSUPPORTED.items()}
WHOLE = 'whole weights in place of the old'


@dataclasses.dataclass
class Contents:
  """The names of the tensors of a file, sorted."""

  # {prefix: {part: name}} of the layers of the base model
  layers: dict[str, dict[str, str]]
  harmless: list[str]  # change nothing
  words: list[str]  # are of learned words, which --embedding reads
  unsupported: dict[str, str]  # {name: method}
  unknown: list[str]


def sort(
  names: Collection[str], known: Collection[str], adapter: str | None = None
) -> Contents:
  """Sorts the names of a file's tensors.

  Args:
    names: of the tensors.
    known: prefixes of the layers of the base model.
    adapter: which of several adapters of PEFT to take.

  Raises:
    ValueError: if there are several adapters and none is chosen, if the chosen
      one is absent, or if a tensor is there twice.
  """
  contents = Contents(collections.defaultdict(dict), [], [], {}, [])
  parsed = {name: lora_names.parse(name) for name in names}
  adapter = choose_adapter(parsed.values(), adapter)
  for name in names:
    part = parsed[name]
    if part and part.adapter not in (None, adapter):
      continue
    if part and part.prefix in known:
      add_part(contents.layers[part.prefix], part, name)
    elif textual_inversion.BUNDLE.fullmatch(name):
      contents.words.append(name)
    elif method := unsupported_method(name, known, names):
      contents.unsupported[name] = method
    elif is_harmless(name):
      contents.harmless.append(name)
    else:
      contents.unknown.append(name)
  # An alpha without factors scales nothing.
  for prefix, parts in list(contents.layers.items()):
    if set(parts) == {'alpha'}:
      contents.harmless.append(parts['alpha'])
      del contents.layers[prefix]
  return contents


def is_harmless(name: str) -> bool:
  """Checks whether a tensor changes nothing."""
  kinds = companions.CHANGE_NOTHING
  return bool(HARMLESS.fullmatch(name) or companions.find_kind(name, kinds))


def choose_adapter(
  parts: Collection[lora_names.Name | None], adapter: str | None
) -> str | None:
  """Returns the adapter of PEFT to take, the chosen or the only one."""
  adapters = sorted({p.adapter for p in parts if p and p.adapter})
  if adapter is not None and adapter not in adapters:
    raise ValueError(
      f'no adapter {adapter!r}, there are: {companions.format_list(adapters)}'
    )
  if adapter is None and len(adapters) > 1:
    raise ValueError(
      f'{len(adapters)} adapters in one file: '
      f'{companions.format_list(adapters)}. Choose one of them, as in '
      f'FILE#{adapters[0]}'
    )
  return adapter or (adapters[0] if adapters else None)


def add_part(parts: dict[str, str], part: lora_names.Name, name: str) -> None:
  """Adds the name of a part to those of its layer."""
  if part.part in parts:
    raise ValueError(
      f'{name} and {parts[part.part]} are the same tensor of a layer: write '
      'the file again with the tool it is from'
    )
  parts[part.part] = name


def unsupported_method(
  name: str, known: Collection[str], names: Collection[str]
) -> str | None:
  """Returns the method of a tensor that is known, and not applied.

  Args:
    name: of the tensor.
    known: prefixes of the layers of the base model.
    names: of all tensors of the file.
  """
  for pattern, method in UNSUPPORTED.items():
    if pattern.fullmatch(name):
      return method
  layer, _, leaf = name.rpartition('.')
  if f'{layer}.on_input' in names:
    return 'IA3'
  layer = layer.removesuffix('.base_layer')
  return WHOLE if leaf in ('weight', 'bias') and layer in known else None
